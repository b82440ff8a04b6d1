"""The networks."""

from tapegpt.models.gpt import gpt, parameter_shapes

__all__ = ["gpt", "parameter_shapes"]
