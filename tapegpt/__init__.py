"""A real autograd tape, in Python, that trains a GPT at the speed of the machine."""

import os

TYPE_CHECKING = False  # as type checkers know it: to import typing takes as long as the help
if TYPE_CHECKING:
    from typing import Any

    from tapegpt.api.language_model import GPT, RNN, LanguageModel, load
    from tapegpt.api.texts import Corpus, Text
    from tapegpt.api.training import train as train
    from tapegpt.errors import TapegptError
    from tapegpt.functions.elementwise import elementwise
    from tapegpt.functions.operation import operation
    from tapegpt.kernels import simd, vmath
    from tapegpt.models.model import Model as Network
    from tapegpt.tape import Array, Scalar, Tape, TapeError

if os.path.isfile(os.path.join(__path__[0], "kernels")):
    # A link that was checked out as a file: what it links to lies beside this folder.
    __path__.append(os.path.dirname(__path__[0]))

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "RNN",
    "Array",
    "Corpus",
    "LanguageModel",
    "Network",
    "Scalar",
    "Tape",
    "TapeError",
    "TapegptError",
    "Text",
    "elementwise",
    "load",
    "operation",
    "simd",
    "train",
    "vmath",
]

# Where the public names are, imported on first use: importing the package must not import Numba.
_PLACES = {
    "GPT": "tapegpt.api.language_model",
    "RNN": "tapegpt.api.language_model",
    "Corpus": "tapegpt.api.texts",
    "LanguageModel": "tapegpt.api.language_model",
    "Network": "tapegpt.models.model",
    "Text": "tapegpt.api.texts",
    "TapegptError": "tapegpt.errors",
    "load": "tapegpt.api.language_model",
    "train": "tapegpt.api.training",
    "Array": "tapegpt.tape",
    "Scalar": "tapegpt.tape",
    "Tape": "tapegpt.tape",
    "TapeError": "tapegpt.tape",
    "elementwise": "tapegpt.functions.elementwise",
    "operation": "tapegpt.functions.operation",
}
_MODULES = {"simd": "tapegpt.kernels.simd", "vmath": "tapegpt.kernels.vmath"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _PLACES:
        # A network of one's own is a Model.
        return getattr(import_module(_PLACES[name]), "Model" if name == "Network" else name)
    if name == "Node":
        import warnings

        warnings.warn("tapegpt.Node is now tapegpt.Scalar", DeprecationWarning, stacklevel=2)
        return __getattr__("Scalar")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
