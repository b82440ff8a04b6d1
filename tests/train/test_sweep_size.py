"""How many documents a sweep takes: fewer sweeps where weights leave the caches between two."""

import pytest

from tapegpt.models.registry import parameter_totals
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.sweep_size import documents_per_sweep

SMALL = ModelConfig(n_layer=4, n_embd=128, block_size=64)
LARGE = ModelConfig(n_layer=6, n_embd=384, n_head=6, block_size=256)


@pytest.mark.parametrize(
    ("model", "batch_size", "val_fraction", "expected"),
    [
        (SMALL, 12, 0.0, 4),
        (SMALL, 3, 0.0, 3),
        (SMALL, 3, 0.1, 4),
        (LARGE, 8, 0.0, 4),
        (LARGE, 2, 0.0, 2),
        (LARGE, 2, 0.1, 4),
        (ModelConfig(block_size=300), 8, 0.0, 1),
        (ModelConfig(n_layer=12, n_embd=768, n_head=12, block_size=2000), 8, 0.0, 1),
    ],
)
def test_documents_in_a_sweep(model, batch_size, val_fraction, expected):
    training = TrainConfig(batch_size=batch_size, val_fraction=val_fraction)
    assert documents_per_sweep(model, training, 65) == expected


@pytest.mark.parametrize(
    ("ensemble", "text", "expected"),
    [(8, False, 32), (8, True, 16), (4, False, 16), (60, False, 64)],
)
def test_a_large_ensemble_takes_twice_the_lines(ensemble, text, expected):
    model = ModelConfig(n_layer=3, n_embd=48, ensemble=ensemble)
    training = TrainConfig(batch_size=100, text=text, val_fraction=0.1)
    assert documents_per_sweep(model, training, 27) == expected


def test_an_ensemble_is_as_large_as_its_networks_together():
    one = ModelConfig(n_layer=4, n_embd=256, block_size=64)
    four = ModelConfig(n_layer=4, n_embd=256, block_size=64, ensemble=4)
    assert parameter_totals(four, 65)[1] == 4 * parameter_totals(one, 65)[1]
    training = TrainConfig(batch_size=100)
    assert [documents_per_sweep(model, training, 65) for model in (one, four)] == [4, 16]
