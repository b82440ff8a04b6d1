"""A real autograd tape that trains a GPT at the speed of the machine."""

__version__ = "0.1.0"
