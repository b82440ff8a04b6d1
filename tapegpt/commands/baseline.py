"""tapegpt baseline: what counting alone reaches, which a network has to beat."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tapegpt.commands.reading import reading
from tapegpt.corpus import default_corpus
from tapegpt.presets import configure
from tapegpt.runs.text import read
from tapegpt.train.baseline import baseline
from tapegpt.train.data import training_data, with_held_out

HELD_OUT = 0.1  # of documents, where nobody has chosen a share


def run(
    data: Sequence[Path] | None, settings: Mapping[str, object], context: int, as_json: bool
) -> int:
    """Count, predict and print. Returns the exit code."""
    model, training = configure(None, settings)
    with reading(quiet=False) as watch:
        corpus = read(data or [default_corpus()], training, watch=watch)
    training = with_held_out(training, corpus, "val_fraction" in settings)
    if training.val_fraction == 0:
        training = replace(training, val_fraction=HELD_OUT)
    begin = time.perf_counter()
    parts = training_data(corpus, model, training, random.Random(training.seed))
    loss, tokens, counted = baseline(parts, context)
    seconds = time.perf_counter() - begin
    if as_json:
        print(
            json.dumps(
                {
                    "loss": loss,
                    "context": context,
                    "tokens": tokens,
                    "counted": counted,
                    "seconds": seconds,
                }
            )
        )
    else:
        print(
            f"counting {loss:.4f} nats a token: {tokens} held out, predicted from {context} before"
            f" each as counted in {counted} others, {seconds:.1f} s"
        )
    return 0
