"""What keeps a tape right when threads share it, and when recording fails half way."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from tapegpt.tape.types import Mark

P = ParamSpec("P")
R = TypeVar("R")


class Guarded(Protocol):
    """A tape, as far as guards need it."""

    def _hold(self) -> None: ...

    def _release(self) -> None: ...

    def _end(self) -> Mark: ...

    def _truncate(self, mark: Mark) -> None: ...


M = TypeVar("M", bound=Guarded)


def alone(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Have other threads wait until a method is done with the tape."""

    @wraps(method)
    def call(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._hold()
        try:
            return method(self, *args, **kwargs)
        finally:
            self._release()

    return call


def all_or_nothing(
    method: Callable[Concatenate[M, P], R],
) -> Callable[Concatenate[M, P], R]:
    """As `alone`, for one that records in several parts: if it fails it forgets them all."""

    @wraps(method)
    def call(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._hold()
        try:
            before = self._end()
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                self._truncate(before)
                raise
        finally:
            self._release()

    return call
