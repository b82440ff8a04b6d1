"""`tapegpt baseline`: counting predicts what val_loss is measured on."""

import json
import random

import numpy as np
import pytest
from command_line import SKY

from tapegpt.corpus import read_documents
from tapegpt.corpus.stream import read_text
from tapegpt.counting import CountingModel
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.data import training_data


def measured(call, *arguments):
    out, _ = call("baseline", "--data", SKY, "--json", *arguments)
    return json.loads(out)


def test_documents_are_cut_at_the_block(call):
    names = read_documents(SKY)
    random.Random(7).shuffle(names)
    held_out = round(0.2 * len(names))
    letters = sorted(set("".join(names)))
    cut = [
        np.array([letters.index(c) for c in name] + [len(letters)])[:5]
        for name in names
    ]  # fmt: skip
    model = CountingModel(cut[:-held_out], len(letters) + 1, 3)
    losses = model.losses(cut[-held_out:])
    flags = ["--val-fraction", "0.2", "--seed", "7", "--context", "3", "--block-size", "5"]
    result = measured(call, *flags)
    assert result["loss"] == pytest.approx(losses.mean())
    assert result["tokens"] == losses.size
    assert result["counted"] == sum(map(len, cut[:-held_out]))


def test_a_text_goes_on_from_what_is_trained_on(call):
    text = SKY.read_text()
    letters = sorted(set(text))
    tokens = np.array([letters.index(c) for c in text])
    end = len(tokens) - round(0.25 * len(tokens))
    model = CountingModel([tokens[:end]], len(letters), 4)
    losses = model.losses([tokens[end - 4 :]])[4:]
    result = measured(call, "--text", "--val-fraction", "0.25", "--context", "4")
    assert result["loss"] == pytest.approx(losses.mean())
    assert result["tokens"] == len(tokens) - end


def test_of_a_long_text_the_end_is_counted():
    training = TrainConfig(text=True, val_fraction=0.25)
    data = training_data(read_text([SKY]), ModelConfig(), training, random.Random(0))
    (whole,), (end,) = data.counted(10**6), data.counted(100)
    assert end.tolist() == whole[-100:].tolist()


def test_a_context_that_cannot_be_is_refused(refused):
    refused("baseline", "--context", "17", names="--context 17")
