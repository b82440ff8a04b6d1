"""A model recorded and made ready for replay: from a configuration to a `Program`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapegpt.config import ModelConfig
from tapegpt.granularity import Dot, Scalar, Vector
from tapegpt.kernels import records as op
from tapegpt.kernels.dispatch import BACKWARD, FORWARD
from tapegpt.kernels.program import Machine, Program
from tapegpt.models import gpt, parameter_shapes
from tapegpt.tape import Tape

Floats = NDArray[np.floating]
BOTH = (FORWARD, BACKWARD)

# The array operands that an operation passes a gradient to, as places in its argument list. The
# kernel can overwrite those gradients; it always adds to the gradients of weights and tables.
DIFFERENTIABLE = {
    op.LINEAR: (3, 6),
    op.RMSNORM: (2,),
    op.ATTENTION: (3, 4, 5),
    op.CROSS_ENTROPY: (2,),
    op.ARRAY_SOFTMAX: (2,),
    op.ARRAY_RELU: (2,),
    op.ARRAY_ADD: (2, 3),
    op.ARRAY_SCALE: (2,),
    op.ARRAY_MEAN: (2,),
}


@dataclass(frozen=True)
class Recording:
    """A program, and the parameters in it by name."""

    program: Program
    documents_per_sweep: int
    weights: dict[str, Floats]  # views into program.values, (outputs, inputs)

    def moment(self) -> Floats:
        """An array like the parameters, zero: what an optimizer remembers of each."""
        return np.zeros_like(self.program.machine.values[: self.program.num_params])

    def by_name(self, prefix: Floats) -> dict[str, Floats]:
        """Views into an array like the parameters, by name."""
        values = self.program.machine.values
        return {
            name: np.lib.stride_tricks.as_strided(
                prefix[(view.ctypes.data - values.ctypes.data) // values.itemsize :],
                view.shape,
                view.strides,
            )
            for name, view in self.weights.items()
        }


def record(
    model: ModelConfig, vocab_size: int, granularity: str, dtype: str, documents_per_sweep: int
) -> Recording:
    """Record a model for batches of documents; its parameters are zero at first.

    scalar and dot take one document at a time, whatever documents_per_sweep says.
    """
    shapes = parameter_shapes(model, vocab_size)
    if granularity == "vector":
        return _record_vector(model, shapes, dtype, documents_per_sweep)
    kind = {"scalar": Scalar, "dot": Dot}[granularity]
    return _record_unrolled(kind, model, shapes, dtype)


def _record_vector(
    model: ModelConfig, shapes: dict[str, tuple[int, int]], dtype: str, documents: int
) -> Recording:
    tape = Tape(dtype)
    weights = {name: tape.parameter(np.zeros(shape)) for name, shape in shapes.items()}
    vocab_size = shapes["wte"][0]
    batch = tape.batch(documents, model.block_size, vocab_size)
    net = Vector(tape, weights, batch)
    logits = gpt(net, model)
    logit_end = tape.mark().records
    root = net.cross_entropy(logits)

    # Transposes depend on parameters alone: they move to the front, to be done once an update.
    machine = tape.machine(BOTH)
    constant = machine.records[:, 0] == op.TRANSPOSE
    machine.records[:] = machine.records[np.argsort(~constant, kind="stable")]
    logit_end += int(constant[logit_end:].sum())
    mark_overwritten(machine, tape.num_params)
    block = model.block_size
    ends = np.full(block + 1, len(machine.records))
    ends[0] = constant.sum()
    program = Program(
        machine=machine,
        num_params=tape.num_params,
        vocab_size=vocab_size,
        unrolled=False,
        ends=ends,
        logit_ends=np.full(block, logit_end),
        roots=np.full(block + 1, root),
        tops=np.full(block + 1, len(tape)),
        logits=np.full(block, logits),
        logits_row=tape.stride(vocab_size),
        weights=batch.weights,
        clear=np.zeros((0, 2), np.int64),
        tokens=batch.tokens.slot,
        positions=batch.positions.slot,
        targets=batch.targets.slot,
        starts=batch.starts,
        placed=np.zeros(block + 1, np.int64),
        probabilities=np.zeros(vocab_size),
    )
    return Recording(program, documents, {name: tape.view(node) for name, node in weights.items()})


def _record_unrolled(
    kind: type[Scalar], model: ModelConfig, shapes: dict[str, tuple[int, int]], dtype: str
) -> Recording:
    tape = Tape(dtype)
    weights = {name: tape.scalar_parameters(np.zeros(shape)) for name, shape in shapes.items()}
    tape.end_parameters()
    vocab_size = shapes["wte"][0]
    batch = tape.batch(1, model.block_size, vocab_size)
    net = kind(tape, weights, batch)
    ends, logit_ends, roots, tops, logits = [0], [], [op.NONE], [tape.num_params], []
    total = op.NONE
    for position in range(model.block_size):
        net.position = position
        row = gpt(net, model)
        logits.append(int(row[0]))
        logit_ends.append(tape.mark().records)
        loss = net.cross_entropy(row)
        total = loss if position == 0 else tape.add(total, loss)
        # All rows of one document have one weight: 1 / positions.
        roots.append(int(tape.record("scale", [total], [batch.weights])[0]))
        ends.append(tape.mark().records)
        tops.append(len(tape))
    program = Program(
        machine=tape.machine(BOTH),
        num_params=tape.num_params,
        vocab_size=vocab_size,
        unrolled=True,
        ends=np.array(ends),
        logit_ends=np.array(logit_ends),
        roots=np.array(roots),
        tops=np.array(tops),
        logits=np.array(logits),
        logits_row=0,
        weights=batch.weights,
        clear=np.array([[tape.num_params, len(tape)]]),
        tokens=batch.tokens.slot,
        positions=batch.positions.slot,
        targets=batch.targets.slot,
        starts=batch.starts,
        placed=np.zeros(model.block_size + 1, np.int64),
        probabilities=np.zeros(vocab_size),
    )
    views = {
        name: program.machine.values[nodes[0, 0] : nodes[-1, -1] + 1].reshape(nodes.shape)
        for name, nodes in weights.items()
    }
    return Recording(program, 1, views)


def mark_overwritten(machine: Machine, num_params: int) -> None:
    """Set the bits of `fresh` in every record that is the last to use an array.

    The last record to use an array is the first to pass it a gradient. Only for programs in which
    every array but the parameters is used by array operations, and none twice by one record.
    """
    used: set[int] = set()
    for record in machine.records[::-1]:
        opcode, at = int(record[0]), int(record[2])
        for bit, place in enumerate(DIFFERENTIABLE.get(opcode, ())):
            node = int(machine.operands[at + place])
            if node >= num_params and node not in used:
                record[3] |= 1 << bit
                used.add(node)
