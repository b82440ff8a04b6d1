"""What tells a user's function from all others: its code, and all that the code refers to."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

# What their functions do follows from the versions that the kernel cache knows anyway.
KNOWN_MODULES = ("math", "cmath", "operator", "numpy", "numba", "tapegpt.kernels")


def fingerprint(function: Callable[..., Any]) -> tuple[object, ...] | None:
    """Equal for equal functions of any process; None if it refers to what cannot be told."""
    try:
        return _of_function(function, set())
    except _UnknownError:
        return None


class _UnknownError(Exception):
    pass


def _of_function(function: Any, seen: set[CodeType]) -> tuple[object, ...]:
    function = getattr(function, "py_func", function)
    if not isinstance(function, FunctionType):
        raise _UnknownError
    code = function.__code__
    if code in seen:  # it calls itself
        return ("again", code.co_name)
    seen.add(code)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    used = [
        (name, function.__globals__.get(name, getattr(builtins, name, None)))
        for name in _names(code)
        if name in function.__globals__ or hasattr(builtins, name)
    ]
    given = [*used, *zip(code.co_freevars, cells, strict=True)]
    defaults = [_of_value(value, seen) for value in function.__defaults__ or ()]
    values = [(name, _of_value(value, seen)) for name, value in given]
    return (_of_code(code), tuple(values), tuple(defaults))


def _names(code: CodeType) -> list[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return sorted({*code.co_names, *(name for part in inner for name in _names(part))})


def _of_code(code: CodeType) -> tuple[object, ...]:
    constants = tuple(
        _of_code(constant) if isinstance(constant, CodeType) else repr(constant)
        for constant in code.co_consts
    )
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_argcount)


def _of_value(value: object, seen: set[CodeType]) -> object:
    if isinstance(value, ModuleType):
        if not value.__name__.startswith(KNOWN_MODULES):
            raise _UnknownError
        return value.__name__
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        data = np.ascontiguousarray(value)
        return (data.dtype.str, data.shape, hashlib.sha256(data.tobytes()).hexdigest())
    if value is None or isinstance(value, (bool, int, float, complex, str, np.generic)):
        return repr(value)
    if isinstance(value, tuple):
        return tuple(_of_value(item, seen) for item in value)
    module = getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", getattr(value, "__name__", None))
    if name and (module == "builtins" or module.startswith(KNOWN_MODULES)):
        return (module, name)
    return _of_function(value, seen)
