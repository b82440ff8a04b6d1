"""A model recorded and made ready for replay: from a configuration to a `Program`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from tapegpt import tape as tapes
from tapegpt.counting.table import CountTable
from tapegpt.graph.fusion import fuse_relu, join_linears, joint_width
from tapegpt.graph.memory_plan import mark_overwritten, share_gradients, share_values
from tapegpt.graph.packing import FEW_ROWS, with_packed_weights
from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.layout import NONE
from tapegpt.kernels.loops.sample import pack_linears
from tapegpt.kernels.program import Program
from tapegpt.kernels.registry import kernels_of, load_kernels
from tapegpt.models.registry import networks, parameter_shapes
from tapegpt.recorders.documents import declare_documents
from tapegpt.recorders.unrolled import Dot, Scalar
from tapegpt.recorders.vector import Vector
from tapegpt.settings import ModelConfig
from tapegpt.tape import Batch, Tape

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class CompiledModel:
    """A program, and the parameters in it by name."""

    program: Program
    documents_per_sweep: int
    weights: dict[str, Floats]  # views into program.values, (outputs, inputs)
    few_rows: Program  # the same for a few rows, with weights packed for it, or the program itself
    table: CountTable | None = None  # whose addresses the program knows
    _loaded: set[int] = field(default_factory=set, init=False)  # directions

    @property
    def parameters(self) -> Floats:
        """All parameters, a view: (num_params,)."""
        return self.program.tape_arrays.values[: self.program.num_params]

    @property
    def kernels(self) -> list[int]:
        """Those that its sweeps need, as `load_kernels` takes them."""
        return kernels_of(self.program.tape_arrays.records)

    def load(
        self,
        directions: Sequence[int] = (FORWARD, BACKWARD),
        goes_on: Callable[[int, int], bool] = lambda ready, total: True,
    ) -> None:
        """Have the kernels of these sweeps ready, compiled where they never were before.

        Whoever runs the program calls it first; but for the first time it does nothing.
        goes_on: told after each kernel how many of how many are ready; False leaves out the others.
        """
        missing = [direction for direction in directions if direction not in self._loaded]
        if not missing:
            return  # to look for the kernels of a scalar program takes as long as two steps of it
        tape_arrays, kernels = self.program.tape_arrays, self.kernels
        for sweep, direction in enumerate(missing):
            for ready, kernel in enumerate(kernels, sweep * len(kernels) + 1):
                dtype = tape_arrays.values.dtype
                load_kernels(tape_arrays.kernels, dtype, [kernel], direction)
                if not goes_on(ready, len(missing) * len(kernels)):
                    return
            self._loaded.add(direction)

    def program_for(self, rows: int) -> Program:
        """The quickest one to go forward over so many rows at a time, with the weights as they are.

        Its kernels are ready. Another call is due after the weights have changed.
        """
        if rows > FEW_ROWS:
            self.load([FORWARD])
            return self.program
        tape_arrays = self.few_rows.tape_arrays
        kernels = kernels_of(tape_arrays.records)
        load_kernels(tape_arrays.kernels, tape_arrays.values.dtype, kernels, FORWARD)
        pack_linears(tape_arrays)
        return self.few_rows

    def by_name(self, prefix: Floats) -> dict[str, Floats]:
        """Views into an array like the parameters, by name."""
        values = self.program.tape_arrays.values
        return {
            name: np.ndarray(
                view.shape,
                view.dtype,
                prefix,
                view.ctypes.data - values.ctypes.data,
                view.strides,
            )
            for name, view in self.weights.items()
        }


def compiled_model(
    model: ModelConfig,
    vocab_size: int,
    granularity: str,
    dtype: str,
    documents_per_sweep: int,
    table: CountTable | None = None,
) -> CompiledModel:
    """Record and compile a model for batches of documents; its parameters are zero at first.

    scalar and dot take one document at a time, whatever documents_per_sweep says. table: the counts
    of a model that has some; without one they know nothing.
    """
    if granularity == "vector":
        if model.counting and table is None:
            table = CountTable([], vocab_size, model.counting, vocab_size - 1)
        return _record_vector(model, vocab_size, dtype, documents_per_sweep, table)
    kind = {"scalar": Scalar, "dot": Dot}[granularity]
    return _record_unrolled(kind, model, vocab_size, dtype)


def _record_vector(
    model: ModelConfig, vocab_size: int, dtype: str, count: int, table: CountTable | None
) -> CompiledModel:
    tape = Tape(dtype)
    shapes = parameter_shapes(model, vocab_size)
    weights = {name: tape.parameter(np.zeros(shape)) for name, shape in shapes.items()}
    documents = declare_documents(tape, count, model.block_size, vocab_size, model.look_back, table)
    net = Vector(tape, weights, documents, table)
    each, network_ends = [], []
    for logits in networks(net, model):
        each.append(logits)
        network_ends.append(tape.mark().records)
    logits = each[0] if model.ensemble == 1 else net.average(each)
    before_losses = tape.mark().records
    together = net.cross_entropy(logits)
    losses = [together] if model.ensemble == 1 else [net.cross_entropy(x) for x in each]
    mean_loss = _mean(tape, losses)
    loss_records = tape.mark().records - before_losses
    mean_records = before_losses - network_ends[-1]

    tape_arrays = mark_overwritten(fuse_relu(tape._replay_arrays()), tape.num_params)
    tape_arrays = share_gradients(tape_arrays, tape.num_params, tape.extents)
    tape_arrays = share_values(tape_arrays, tape.extents, keep=[logits.id])
    block = model.block_size
    if width := joint_width(tape_arrays, tape._stride):
        joint = tape.array(np.zeros((documents.batch.capacity, width)))
        tape_arrays = join_linears(tape_arrays, tape.extents, tape._stride, joint.id)
    few_rows = with_packed_weights(tape_arrays, tape.lanes, tape._auxiliary)
    tape_arrays, few_rows = (
        arrays._replace(values=tape.values, grads=tape.grads) for arrays in (tape_arrays, few_rows)
    )
    cleared = [*(loss.id for loss in losses), *range(losses[-1].id, mean_loss.id)]
    # Every network has lost as many records; what comes after them has them all.
    records = len(tape_arrays.records)
    before_losses = records - loss_records
    lost = (network_ends[-1] - (before_losses - mean_records)) // len(each)
    network_ends = [end - lost * (1 + i) for i, end in enumerate(network_ends)]
    ends = np.full(block + 1, records)
    ends[0] = 0
    program = Program(
        tape_arrays=tape_arrays,
        num_params=tape.num_params,
        vocab_size=vocab_size,
        unrolled=False,
        ends=ends,
        logit_ends=np.full(block, before_losses),
        roots=np.full(block + 1, mean_loss.id),
        common_roots=np.full(block + 1, together.id),
        tops=np.full(block + 1, len(tape)),
        logits=np.full(block, logits.id),
        logits_row=tape._stride(vocab_size),
        weights=documents.batch.weights,
        # Of the losses, and of what makes one of them; array operations overwrite theirs.
        clear=np.array([(node, node + 1) for node in cleared]),
        networks=_ranges(network_ends, before_losses + 1, [loss.id for loss in losses]),
        slots=documents.slots,
        placed=np.zeros(block + 1, np.int64),
        documents=np.zeros(count, np.int64),
        likelihoods=np.zeros((count + 1) * tape._stride(vocab_size), dtype),
    )
    views = {name: tape._view(tape.values, w.id) for name, w in weights.items()}
    packed = program._replace(tape_arrays=few_rows)
    return CompiledModel(program, count, views, packed, table)


def _ranges(ends: list[int], first_loss: int, losses: list[int]) -> NDArray[np.int64]:
    """The `networks` of an ensemble's program.

    ends: one past each network's last record. first_loss: the record of the first network's loss.
    losses: the nodes of all.
    """
    if len(losses) == 1:
        return np.zeros((0, 4), np.int64)
    return np.stack([[0, *ends[:-1]], ends, first_loss + np.arange(len(losses)), losses], axis=1)


def _record_unrolled(
    kind: type[Scalar], model: ModelConfig, vocab_size: int, dtype: str
) -> CompiledModel:
    tape = Tape(dtype)
    shapes = parameter_shapes(model, vocab_size)
    weights = {name: tape.scalar_parameters(np.zeros(shape)) for name, shape in shapes.items()}
    tape._end_parameters()
    documents = declare_documents(tape, 1, model.block_size, vocab_size, model.look_back)
    net = kind(tape, weights, documents)
    ends, logit_ends, roots, common_roots = [0], [], [NONE], [NONE]
    tops, logits = [tape.num_params], []
    total: tapes.Scalar | None = None
    common: tapes.Scalar | None = None
    for position in range(model.block_size):
        net.position = position
        each = list(networks(net, model))
        row = each[0] if model.ensemble == 1 else net.average(each)
        logits.append(int(row[0]))
        logit_ends.append(tape.mark().records)
        common = _add(tape, common, net.cross_entropy(row))
        common_roots.append(_weighted(tape, common, documents.batch))
        if model.ensemble > 1:
            total = _add(tape, total, _mean(tape, [net.cross_entropy(x) for x in each]))
            roots.append(_weighted(tape, total, documents.batch))
        ends.append(tape.mark().records)
        tops.append(len(tape))
    program = Program(
        tape_arrays=tape._replay_arrays(),
        num_params=tape.num_params,
        vocab_size=vocab_size,
        unrolled=True,
        ends=np.array(ends),
        logit_ends=np.array(logit_ends),
        roots=np.array(roots if model.ensemble > 1 else common_roots),
        common_roots=np.array(common_roots),
        tops=np.array(tops),
        logits=np.array(logits),
        logits_row=0,
        weights=documents.batch.weights,
        clear=np.array([[tape.num_params, len(tape)]]),
        networks=np.zeros((0, 4), np.int64),
        slots=documents.slots,
        placed=np.zeros(model.block_size + 1, np.int64),
        documents=np.zeros(1, np.int64),
        likelihoods=np.zeros(2 * tape._stride(vocab_size), dtype),
    )
    views = {
        name: program.tape_arrays.values[nodes[0, 0] : nodes[-1, -1] + 1].reshape(nodes.shape)
        for name, nodes in weights.items()
    }
    return CompiledModel(program, 1, views, program)


def _mean(tape: Tape, nodes: list[tapes.Scalar]) -> tapes.Scalar:
    return nodes[0] if len(nodes) == 1 else tape.scale(reduce(tape.add, nodes), 1 / len(nodes))


def _add(tape: Tape, total: tapes.Scalar | None, loss: tapes.Scalar) -> tapes.Scalar:
    return loss if total is None else tape.add(total, loss)


def _weighted(tape: Tape, total: tapes.Scalar, batch: Batch) -> int:
    """A document's sum of losses times their weight: all of its rows have one, 1 / positions."""
    return int(tape.elementwise("scale", [total.id], [batch.weights])[0])
