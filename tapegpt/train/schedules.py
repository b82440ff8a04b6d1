"""The schedules: a row for each, whose formula is in kernels/loops/schedules.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tapegpt.kernels.loops.schedules import Schedule as KernelSchedule
    from tapegpt.settings import TrainConfig

TIMED_STEPS = 1000  # decays of a training that has seconds as its budget


class Schedule(NamedTuple):
    """What is known of a schedule before Numba is imported."""

    name: str  # what --schedule calls it
    kernel: str  # the name of its kind among the kernels
    settings: tuple[str, ...] = ()  # those of TrainConfig that it uses, and not every schedule


_ROWS = (
    Schedule("linear", "LINEAR"),
    Schedule("exponential", "EXPONENTIAL", ("decay",)),
    Schedule("cosine", "COSINE", ("warmup", "final_rate")),
    Schedule("constant", "CONSTANT"),
    Schedule("wsd", "WSD", ("warmup", "cooldown")),
)
SCHEDULES: Mapping[str, Schedule] = {row.name: row for row in _ROWS}


def kernel_schedule(
    config: TrainConfig, learning_rate: float, origin: float, span: float
) -> KernelSchedule:
    """The schedule of a training that begins with step `origin` and has `span` steps."""
    from tapegpt.kernels.loops import schedules

    timed = config.seconds is not None
    return schedules.Schedule(
        kind=getattr(schedules, SCHEDULES[config.schedule].kernel),
        learning_rate=learning_rate,
        decay=config.decay ** (TIMED_STEPS / span) if timed else config.decay,
        warmup=config.warmup,
        origin=origin,
        span=span,
        cooldown=config.cooldown,
        final_rate=config.final_rate,
    )
