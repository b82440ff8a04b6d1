"""Texts that ship: `train` learns from the list of names when it is given no other."""
