"""tapegpt eval: how well a run predicts a text."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tapegpt.checkpoint import load
from tapegpt.run_folder import best_of
from tapegpt.runs.text import corpus_of, history_of, parts_of, read, whole
from tapegpt.system.compiler import require_compiler

LOG = logging.getLogger("tapegpt")


def run(folder: Path, data: Sequence[Path] | None, last: bool, as_json: bool) -> int:
    """Measure and print. Returns the exit code."""
    saved = load(folder if last else best_of(folder))
    if data is not None:
        name = " ".join(map(str, data))
        corpus = read(data, saved.training, saved.corpus_digest)
        parts, trained_on = {name: whole(corpus, saved.model.block_size)}, None
    else:
        corpus = corpus_of(saved, history_of(folder))
        named = parts_of(corpus, saved.training, saved.model.block_size)._asdict()
        parts = {name.replace("_", " "): part for name, part in named.items() if part}
        trained_on = "training"

    require_compiler()
    from tapegpt.runs.measure import measure

    measured = {name: measure(saved, part, name == trained_on) for name, part in parts.items()}
    if as_json:
        shown = [{"text": name, **asdict(result)} for name, result in measured.items()]
        print(json.dumps({"run": str(folder), "step": saved.step, "measured": shown}, indent=2))
        return 0
    width = max(len(name) for name in [*measured, "text"])
    print(f"{'text':{width}}  nats/token  nats/character  perplexity  characters")
    for name, result in measured.items():
        print(
            f"{name:{width}}  {result.nats_per_token:10.4f}  {result.nats_per_character:14.4f}"
            f"  {result.perplexity:10.3f}  {result.characters:10}"
        )
        if result.characters_cut:
            LOG.warning(
                "%s: %d more characters lie beyond the block of %d and are not measured",
                name,
                result.characters_cut,
                saved.model.block_size,
            )
    return 0
