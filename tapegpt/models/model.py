"""What makes a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from tapegpt.models.layer_builder import LayerBuilder
    from tapegpt.settings import ModelConfig

X = TypeVar("X")
Shapes = dict[str, tuple[int, int]]


class Model(ABC):
    """A network, in a module of its own in this folder, which lists it in MODELS.

    What it takes of memory, which of its weights are tables, and how much work a position is, is
    counted from `logits`, see recorders/counter.py.
    """

    name: ClassVar[str]  # what --model calls it
    settings: ClassVar[tuple[str, ...]]  # those of ModelConfig that it uses, and not every model
    head: ClassVar[str] = "lm_head"  # the weights that make logits
    learning_rates: ClassVar[Mapping[str, float]] = {}  # by optimizer, where not its own

    def check(self, config: ModelConfig) -> None:  # noqa: B027 - most have nothing to refuse
        """Raise `UsageError` where settings do not go together."""

    def zeros(self, config: ModelConfig) -> Collection[str]:
        """The weights that are 0 at first."""
        return ()

    @abstractmethod
    def shapes(self, config: ModelConfig, vocab_size: int) -> Shapes:
        """Name and shape of every weight, in the order of initialisation.

        Of a matrix (outputs, inputs), of a table (rows, width).
        """

    @abstractmethod
    def logits(self, net: LayerBuilder[X], config: ModelConfig) -> X:
        """Build the logits of the next token, for the positions that `net` stands at."""
