"""The loss that counting alone reaches on what is held out: what a network has to beat."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapegpt.counting import CountingModel
from tapegpt.counting.texts import MOST
from tapegpt.train.data import TrainingData

CONTEXT = 6  # tokens: of 4 to 7 the best of tinyshakespeare; 5 are as good for names


class Baseline(NamedTuple):
    """What counting reaches."""

    loss: float  # nats, mean over the tokens that val_loss is measured on
    tokens: int  # held out
    counted: int  # tokens


def baseline(data: TrainingData, context: int = CONTEXT) -> Baseline:
    """Count in what is trained on, and predict what is held out from `context` tokens."""
    counted = data.counted(MOST)
    model = CountingModel(counted, data.tokenizer.vocab_size, context)
    texts, before = data.predicted(context)
    losses = [part[before:] for part in _split(model.losses(texts), texts)]
    every = np.concatenate(losses)
    return Baseline(float(every.mean()), every.size, sum(map(len, counted)))


def _split(
    losses: NDArray[np.float64], texts: list[NDArray[np.int32]]
) -> list[NDArray[np.float64]]:
    return np.split(losses, np.cumsum([len(text) for text in texts])[:-1])
