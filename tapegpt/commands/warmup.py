"""tapegpt warmup: compile and cache what the other commands use.

What only graphs of one's own record (kernels/ops/array/) is compiled when it is first used.
"""

from typing import Any

import numpy as np

from tapegpt.kernels.compile.cpu import MATRIX_UNIT, VECTOR_BYTES
from tapegpt.kernels.compile.indirect_call import BACKWARD, FORWARD
from tapegpt.kernels.ops import array
from tapegpt.kernels.ops.attention import ATTENTION
from tapegpt.kernels.ops.linear import LINEAR
from tapegpt.kernels.registry import KERNELS, load_kernels, new_table, opcode, opcodes
from tapegpt.sampling import sample_in_turn
from tapegpt.sampling.stream import texts_of
from tapegpt.setting import DTYPES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.system.host import peak_gflops
from tapegpt.train.progress import Compiling
from tapegpt.train.trainer import Trainer


def run() -> int:
    """Compile the operations of models, and what trains, evaluates and samples.

    Returns the exit code.
    """
    kernels = [
        (dtype, direction, kernel)
        for dtype in DTYPES
        for direction in (FORWARD, BACKWARD)
        for kernel in sorted(_recorded(dtype))
    ]
    with Compiling(quiet=False, total=len(kernels)) as compiling:
        for ready, (dtype, direction, kernel) in enumerate(kernels, 1):
            # A table with the switch of all scalar operations would not load that of common ones.
            load_kernels(new_table(), np.dtype(dtype), [kernel], direction)
            compiling.update(ready)
    for dtype in DTYPES:
        # What calls the operations is the same code for all models.
        training = TrainConfig(val_fraction=0.5, dtype=dtype, optimizer="muon")
        trainer = Trainer(ModelConfig(n_embd=4, block_size=2), training, ["ab", "ba"])
        trainer.advance(1)
        trainer.evaluate()
        list(sample_in_turn(trainer.compiled, trainer.tokenizer, SampleConfig(), trainer.rng))
        list(next(texts_of(trainer.compiled, trainer.tokenizer, SampleConfig(), trainer.rng)))
    peak_gflops()
    return 0


def _recorded(dtype: str) -> set[int]:
    """The operations that models of this type record on this machine, as `load_kernels` takes them.

    A square of attention is no wider than a vector, and a matrix unit multiplies float32 alone.
    """
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    wider = set(opcodes(ATTENTION)[lanes.bit_length() :])
    has_unit = MATRIX_UNIT and dtype == "float32"
    unit = set() if has_unit else {opcode(LINEAR, variant=1)}
    others = {code for code, (forward, _) in enumerate(KERNELS) if _is_of_graphs(forward)}
    return set(range(len(KERNELS))) - wider - unit - others


def _is_of_graphs(kernel: Any) -> bool:
    return kernel is not None and kernel.py_func.__module__.startswith(array.__name__)
