"""What an update is made with: the settings of an optimizer, checked, and what its kernel takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.loops import optimizers
from tapegpt.kernels.loops.muon import Muon, kernel_address, no_matrices, room_for
from tapegpt.optim.packing import Packing
from tapegpt.tape.alignment import aligned_zeros
from tapegpt.tape.types import Number, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

STATES = {"adam": 2, "adamw": 2, "sgd": 1, "muon": 2}  # arrays like the packed nodes
KINDS = {"sgd": optimizers.SGD, "muon": optimizers.MUON}


@dataclass(frozen=True)
class Update:
    """The settings of an optimizer but for its rate, which may change."""

    name: str
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0
    weight_decay: float = 0.0
    cautious_decay: bool = False
    momentum: float = 0.0
    other_rate: float = 1.0  # Muon: of what is no matrix, by that of matrices
    matrices: tuple[int, ...] = ()  # Muon: array nodes

    def __post_init__(self) -> None:
        if not isinstance(self.betas, Sequence) or len(self.betas) != 2:
            raise TapeError(f"betas: {self.betas!r:.60} is not two numbers")
        for beta in self.betas:
            self._check("betas", beta, 0 <= beta < 1 if _is_number(beta) else False, "0 up to 1")
        for name in ("eps", "weight_decay"):
            number = getattr(self, name)
            self._check(name, number, _is_number(number) and number >= 0, "0 up")
        momentum = self.momentum
        self._check("momentum", momentum, _is_number(momentum) and 0 <= momentum < 1, "0 up to 1")

    @staticmethod
    def _check(name: str, number: object, right: bool, wanted: str) -> None:
        if not right:
            raise TapeError(f"{name}: {number!r:.60} is not a finite number from {wanted}")

    def kernel(self, tape: Tape, packing: Packing) -> optimizers.Optimizer:
        """The optimizer as kernels take it, at its beginning."""
        count, size = STATES[self.name], packing.size
        return optimizers.Optimizer(
            kind=KINDS.get(self.name, optimizers.ADAM),
            state=aligned_zeros(count * size, tape.dtype).reshape(count, size),
            beta1=float(self.betas[0]),
            beta2=float(self.betas[1]),
            epsilon=float(self.eps),
            weight_decay=float(self.weight_decay),
            cautious_decay=bool(self.cautious_decay),
            momentum=float(self.momentum),
            clip_norm=math.inf,
            averaging=0.0,
            clears=False,
            muon=self._muon(tape, packing) if self.name == "muon" else no_matrices(tape.dtype),
        )

    def _muon(self, tape: Tape, packing: Packing) -> Muon:
        lanes = VECTOR_BYTES // tape.dtype.itemsize
        listed: list[tuple[int, ...]] = []
        others = [0]
        for node in sorted(self.matrices):
            shape, place = tape._shapes[node], packing.place(node)
            listed.append((place, shape.rows, shape.width, 0))
            others += [place, place + tape.extents[node]]
        others.append(packing.size)
        room = max(room_for(rows, columns, lanes) for _, rows, columns, _ in listed)
        return Muon(
            matrices=np.array(listed, np.int64).ravel(),
            others=np.array(others, np.int64),
            other_rate=self.other_rate,
            rooms=aligned_zeros(room, tape.dtype),
            room=room,
            kernel=kernel_address(tape.dtype),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool) and math.isfinite(float(value))


def checked_rate(rate: Any, name: str = "lr") -> float:
    """A learning rate, as a float; TapeError for what is none."""
    if not _is_number(rate) or rate <= 0:
        raise TapeError(f"{name}: {rate!r:.60} is not a finite number above 0")
    return float(rate)


Losses = NDArray[np.float64]
