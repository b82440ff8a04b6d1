"""Names of before, which go on for one release: each says what its new name is."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function take the keyword `old` for `new`, with a DeprecationWarning."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                warn_renamed(f"the argument {old}", new, 3)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def warn_renamed(old: str, new: str, level: int) -> None:
    """Warn whoever used an old name, so many calls above."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=level)


class OldName:
    """An attribute that goes by another name now.

    A class with `__getattr__` would do, but Python then looks up all its attributes slowly.
    """

    def __init__(self, new: str, give: Callable[[Any], Any]) -> None:
        self._new, self._give, self._name = new, give, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        warn_renamed(f"{owner.__name__}.{self._name}", self._new, 3)
        return self._give(instance)


class HidesOldNames(type):
    """The type of classes whose old names `dir` does not show."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if not isinstance(_static(cls, name), OldName)]


def _static(cls: type, name: str) -> object:
    return next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), None)
