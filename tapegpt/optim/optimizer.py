"""Moving leaves of a tape against the gradient of a loss, many steps in one call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from tapegpt.errors import DivergedError
from tapegpt.functions.registered import make_room
from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.layout import BatchRange
from tapegpt.kernels.loops.descent import DESCEND, Descent, Moved
from tapegpt.kernels.loops.optimizers import Optimizer as KernelOptimizer
from tapegpt.kernels.registry import kernels_of, load_kernels
from tapegpt.optim.chains import Program, fuse_chains
from tapegpt.optim.fixed import Fixed, fixed_arrays
from tapegpt.optim.packing import Packing, packing_of
from tapegpt.optim.update import Losses, Update, checked_rate
from tapegpt.tape.alignment import ALIGNMENT, aligned_zeros
from tapegpt.tape.handles import Node
from tapegpt.tape.types import Ids, TapeError

if TYPE_CHECKING:
    from tapegpt.tape import Tape

SECONDS_PER_CALL = 0.2  # between looks at signals


class Optimizer:
    """An optimizer of some leaves of a tape: `tape.adam()` and its like make it.

        tape = Tape()
        w = tape.parameter([[0.0]])
        loss = ((w - 3.0) ** 2).mean()
        opt = tape.adam(lr=0.1)
        losses = opt.step(loss, n=200)   # float64[200]

    What it remembers of gradients goes on from call to call. `lr` may be set between them; `steps`
    counts them.
    """

    def __init__(
        self, tape: Tape, update: Update, lr: float, leaves: Sequence[Node] | Ids | None
    ) -> None:
        self.tape = tape
        self.lr = checked_rate(lr)
        self.steps = 0
        self._update = update
        self._leaves = leaves
        self._packing: Packing | None = None  # until the first step
        self._kernel: KernelOptimizer | None = None
        self._fixed: tuple[tuple[int, int, int], Fixed] | None = None  # of a program and its end
        self._generation = tape.generation
        if leaves is not None:
            self._pack()

    def __repr__(self) -> str:
        return f"Optimizer({self._update.name!r}, lr={self.lr:g}, {self.steps} steps)"

    @overload
    def step(self, loss: Node) -> float: ...
    @overload
    def step(self, loss: Node, n: int) -> Losses: ...
    def step(self, loss: Node, n: int | None = None) -> float | Losses:
        """Do a step, or n of them, in compiled code: forward, back, update.

        loss: a scalar node. Returns its value before the step, or before each, float64[n]. The
        gradients of the last step stay on the tape. Arrays that the optimizer does not move, what
        is computed from these alone, and what lies within a chain of elementwise operations may
        have none: `tape.grad` then raises until the next `backward`.

        Raises DivergedError at the first loss or update that is not finite: the tape then has the
        values of before that step, and the optimizer is of no more use. Raises TapeError where the
        leaves were forgotten by a reset, or parameters were recorded after the first step.
        """
        tape = self.tape
        tape._hold()
        try:
            root = tape._scalar(loss)
            losses = np.zeros(1 if n is None else tape._count(n, "steps"))
            learning_rate = checked_rate(self.lr)
            self._prepare()
            done, count, begin = 0, 1, time.perf_counter()
            while done < len(losses):
                self._descend(root, learning_rate, losses[done : done + count])
                done += count
                pace = (time.perf_counter() - begin) / done
                count = max(1, min(4 * count, int(SECONDS_PER_CALL / pace)))
            return float(losses[0]) if n is None else losses
        finally:
            tape._release()

    def _prepare(self) -> None:
        """Pack the parameters at the first step; see that what was packed is still there."""
        tape, generation = self.tape, self._generation
        if self._packing is None:
            self._pack()
        elif tape.generation is not generation:
            if not tape._survives(self._packing.last, generation.number):
                raise TapeError("the leaves of this optimizer were forgotten by a reset")
        elif self._leaves is None and tape._parameters() != self._parameters:
            raise TapeError(
                "parameters were recorded after the first step of this optimizer: make a new one"
            )
        self._generation = tape.generation

    def _pack(self) -> None:
        tape = self.tape
        self._packing = packing = packing_of(tape, self._leaves)
        self._parameters = tape._parameters()
        self._kernel = self._update.kernel(tape, packing)
        self._packs = self._update.name == "muon" or not packing.is_slice(
            ALIGNMENT // tape.dtype.itemsize
        )
        self._before = aligned_zeros(packing.size, tape.dtype)
        self._grads = aligned_zeros(packing.size, tape.dtype) if self._packs else self._before

    def _moved(self, packing: Packing) -> Moved:
        """The values and gradients that are moved: packed, or where they lie on the tape."""
        if self._packs:
            return Moved(self._before, self._grads)
        first = int(packing.stretches[0, 0])
        nodes = slice(first, first + packing.size)
        return Moved(self.tape.values[nodes], self.tape.grads[nodes])

    def _fixed_arrays(self, packing: Packing, end: int) -> Fixed:
        """What gets no gradient, found once for each program."""
        tape = self.tape
        program = (tape.generation.number, len(tape._records), end)
        if (
            self._fixed is None
            or self._fixed[0] != program
            or not self._fixed[1].is_of(tape.values)
        ):
            self._fixed = (program, fixed_arrays(tape, packing, self._loaded(packing, end)))
        fixed = self._fixed[1]
        for begin in fixed.without_gradient - tape._without_gradient:
            tape.grads[begin : begin + tape.extents.get(begin, 1)] = 0
        tape._without_gradient = fixed.without_gradient
        return fixed

    def _loaded(self, packing: Packing, end: int) -> Program:
        """The program of the tape's records up to `end`, its kernels ready."""
        tape = self.tape
        program = fuse_chains(tape, packing, end)
        make_room(tape)
        for direction in (FORWARD, BACKWARD):
            if len(program.records) == end:
                tape._load(direction)
            else:
                kernels = kernels_of(program.records)
                load_kernels(tape.kernels, tape.dtype, kernels, direction)
        return program

    def _descend(self, root: int, learning_rate: float, losses: Losses) -> None:
        tape = self.tape
        tape._evaluated = 0
        assert self._packing is not None and self._kernel is not None
        fixed = self._fixed_arrays(self._packing, tape._records_until(root))
        end = len(fixed.records)
        descent = Descent(root, end, self.steps, learning_rate, self._packs)
        batch_range = BatchRange(*map(int, tape._batch_range()))
        done = DESCEND[self._kernel.kind](
            tape._live_arrays()._replace(records=fixed.records, operands=fixed.operands),
            tape._often_used(),
            batch_range,
            self._moved(self._packing),
            self._before,
            self._packing.stretches,
            fixed.clear,
            self._kernel,
            descent,
            losses,
        )
        self.steps += int(done)
        if done < len(losses):
            what = "the loss" if not np.isfinite(losses[done]) else "the update"
            raise DivergedError(
                f"step {self.steps + 1}: {what} is not finite (loss {losses[done]:.6g}, lr"
                f" {learning_rate:g}); the tape has the values of before it"
            )
