"""What is held out of training: how much for evaluation, and how much for the end."""

from dataclasses import dataclass

from tapegpt.bounds import flag
from tapegpt.errors import UsageError
from tapegpt.settings import TrainConfig

FRACTIONS = ("val_fraction", "test_fraction")


@dataclass(frozen=True)
class Split:
    """Documents, or characters of a text, in order.

    The first are trained on, the next evaluate, the last test.
    """

    held_out: int  # where those for evaluation begin
    test: int  # where those for test begin


def split(training: TrainConfig, count: int, what: str = "documents", least: int = 1) -> Split:
    """Split so many. Raises `UsageError` if fewer than `least` are left to train on."""
    test = count - _count(training.test_fraction, count)
    held_out = test - _count(training.val_fraction, count)
    if count < least:
        raise UsageError(
            f"a text of {count} {what} is shorter than a window of {least}:"
            " choose a smaller --block-size, or a longer text"
        )
    if held_out < least:
        names = [name for name in FRACTIONS if getattr(training, name) > 0]
        shown = " with ".join(f"{flag(name)} {getattr(training, name):g}" for name in names)
        raise UsageError(
            f"{shown} leaves {'none' if least == 1 else f'fewer than {least}'} of {count} {what}"
            f" to train on: choose a smaller one, or more {what}"
        )
    return Split(held_out, test)


def _count(fraction: float, count: int) -> int:
    """How many a fraction holds out: one at least where it is above 0."""
    return max(1, round(fraction * count)) if fraction > 0 else 0
