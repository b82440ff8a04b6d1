"""What a training needs beside its model, loaded or compiled at its beginning and not later."""

from collections.abc import Callable

import numpy as np

from tapegpt.sampling import draw
from tapegpt.sampling.stream import load_continuation
from tapegpt.settings import SampleConfig
from tapegpt.system.host import load_peak
from tapegpt.train.trainer import Trainer

Loader = Callable[[], object]


def loaders(trainer: Trainer, draws: bool, measures_peak: bool) -> list[Loader]:
    """What loads, or compiles, all but the kernels of the model.

    draws: whether there are samples at the end. measures_peak: whether the machine's is shown.
    """
    config = trainer.training
    needed: list[Loader] = [lambda: trainer.advance(0)]
    if config.val_fraction + config.test_fraction > 0:
        needed.append(trainer.load_evaluation)
    if draws or config.val_fraction > 0:
        needed.append(lambda: _load_sampling(trainer))
    if measures_peak:
        needed.append(load_peak)
    return needed


def _load_sampling(trainer: Trainer) -> None:
    trainer.compiled.program_for(1)  # an evaluation draws one text
    if trainer.training.text:
        load_continuation(trainer.compiled)
    else:
        none = np.zeros((0, trainer.model.block_size))
        draw(trainer.compiled, np.zeros(0, np.int64), SampleConfig(), none, in_turn=True)
