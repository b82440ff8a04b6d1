"""Names of before, which go on for one release: each says what its new name is."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

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


class OldNames:
    """Attributes that go by other names now, and that `dir` does not show."""

    # Each: what it is called now, and what gives it, called with the object.
    _old_names: ClassVar[Mapping[str, tuple[str, Callable[[Any], Any]]]]

    def _renamed(self, name: str) -> Any:
        """What an old name stands for; AttributeError where it is none."""
        known = type(self)._old_names.get(name)
        if known is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        new, give = known
        warn_renamed(f"{type(self).__name__}.{name}", new, 4)
        return give(self)
