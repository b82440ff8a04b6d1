"""The rows of bench/library.py.

A row is a function that yields the name of a column and what is timed there. Whatever a row times
returns its results: those of all columns must agree.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

OURS = "tapegpt"
MICROGRAD, TORCH, JAX = (find_spec(name) is not None for name in ("micrograd", "torch", "jax"))

Ways = Iterator[tuple[str, Callable[[], Any]]]

if TORCH:
    import torch

    torch.set_num_threads(1)
    torch._dynamo.config.trace_autograd_ops = True
if JAX:
    import jax

    jax.config.update("jax_enable_x64", True)


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """By PyTorch, as quick as it gets: one graph, called through C++."""
    return torch.compile(f, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
