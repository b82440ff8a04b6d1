"""Documents held out of training: how many for evaluation, and how many for the end."""

from dataclasses import dataclass

from tapegpt.bounds import flag
from tapegpt.errors import UsageError
from tapegpt.settings import TrainConfig

FRACTIONS = ("val_fraction", "test_fraction")


@dataclass(frozen=True)
class Split:
    """Documents in order: the first are trained on, the next evaluate, the last test."""

    held_out: int  # where those for evaluation begin
    test: int  # where those for test begin


def split(training: TrainConfig, documents: int) -> Split:
    """Split this many documents. Raises `UsageError` if none is left to train on."""
    test = documents - _count(training.test_fraction, documents)
    held_out = test - _count(training.val_fraction, documents)
    if held_out < 1:
        names = [name for name in FRACTIONS if getattr(training, name) > 0]
        shown = " with ".join(f"{flag(name)} {getattr(training, name):g}" for name in names)
        raise UsageError(
            f"{shown} leaves none of {documents} documents to train on:"
            " choose a smaller one, or more documents"
        )
    return Split(held_out, test)


def _count(fraction: float, documents: int) -> int:
    """How many documents a fraction holds out: one at least where it is above 0."""
    return max(1, round(fraction * documents)) if fraction > 0 else 0
