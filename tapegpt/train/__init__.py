"""One training: the trainer, when it stops, where it is saved, and what it reports."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`tapegpt.train(model, corpus)` is a function: see api/training.py."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from tapegpt.api.training import train

        return train(*arguments, **settings)


sys.modules[__name__].__class__ = _Callable
