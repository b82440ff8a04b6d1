"""A real autograd tape that trains a GPT at the speed of the machine."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapegpt.tape import Node, Tape, TapeError

if os.path.isfile(os.path.join(__path__[0], "kernels")):
    # A link that was checked out as a file: what it links to lies beside this folder.
    __path__.append(os.path.dirname(__path__[0]))

__version__ = "0.1.0"
__all__ = ["Node", "Tape", "TapeError"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # On first use: importing the package must not import Numba.
    if name in __all__:
        from tapegpt import tape

        return getattr(tape, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
