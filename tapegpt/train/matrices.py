"""Which weights Muon moves as matrices, and what its kernel is given of them."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tapegpt.graph.compile import CompiledModel
from tapegpt.kernels.compile.cpu import VECTOR_BYTES
from tapegpt.kernels.loops.muon import Muon, kernel_address, room_for
from tapegpt.models.registry import network_shapes
from tapegpt.recorders.counter import outer_weights
from tapegpt.settings import ModelConfig
from tapegpt.tape.alignment import ALIGNMENT, aligned_zeros

Floats = NDArray[np.floating]


def hidden_matrices(model: ModelConfig, weights: Iterable[str]) -> list[str]:
    """The weights between a network's arrays: not tables, what makes logits, what counts go by."""
    other = outer_weights(model)
    return [name for name in weights if name not in other]


def bytes_beside(model: ModelConfig, vocab_size: int, dtype: str) -> int:
    """About as many bytes as a thread computes its largest matrix in."""
    itemsize, shapes = np.dtype(dtype).itemsize, network_shapes(model, vocab_size)
    lanes = VECTOR_BYTES // itemsize
    names = hidden_matrices(replace(model, ensemble=1), shapes)
    rooms = (room_for(*shapes[name], lanes) for name in names)
    return itemsize * max(rooms, default=0)


def muon_of(model: ModelConfig, compiled: CompiledModel, threads: int, other_rate: float) -> Muon:
    """What the kernel is given of a model's matrices, compiled where it never was before.

    Its weights are array nodes. other_rate: of the other weights, by the matrices' rate.
    """
    program = compiled.program
    values = program.tape_arrays.values
    lanes, aligned = (count // values.itemsize for count in (VECTOR_BYTES, ALIGNMENT))
    names = hidden_matrices(model, compiled.weights)
    views = [compiled.weights[name] for name in names]
    starts = [(view.ctypes.data - values.ctypes.data) // values.itemsize for view in views]
    ends = [
        start + len(view) * view.strides[0] // values.itemsize
        for start, view in zip(starts, views, strict=True)
    ]
    owners = _owners([view.shape for view in views], threads)
    matrices = [
        (start, *view.shape, owner)
        for start, view, owner in zip(starts, views, owners, strict=True)
    ]
    others = np.array([0, *sum(sorted(zip(starts, ends, strict=True)), ()), program.num_params])
    room = max((room_for(len(view), view.shape[1], lanes) for view in views), default=0)
    room += -room % aligned
    return Muon(
        matrices=np.array(matrices, np.int64).ravel(),
        others=others.astype(np.int64),
        other_rate=other_rate,
        rooms=aligned_zeros(threads * room, values.dtype),
        room=room,
        kernel=kernel_address(values.dtype),
    )


def _owners(shapes: list[tuple[int, ...]], threads: int) -> list[int]:
    """The thread that moves each matrix: the largest first, to the one with least to do."""
    owners, work = [0] * len(shapes), [0] * threads
    costs = [min(shape) ** 2 * sum(shape) for shape in shapes]
    for i in sorted(range(len(shapes)), key=lambda i: -costs[i]):
        owners[i] = min(range(threads), key=work.__getitem__)
        work[owners[i]] += costs[i]
    return owners
