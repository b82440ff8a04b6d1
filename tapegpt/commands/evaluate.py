"""tapegpt eval: how well a run predicts a text."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tapegpt.checkpoint import Run, load
from tapegpt.corpus import Corpus, TokenStream
from tapegpt.errors import TapegptError, UsageError
from tapegpt.run_folder import best_of
from tapegpt.runs.text import corpus_of, history_of, parts_of, read, whole
from tapegpt.runs.unknown import check_known, known_part
from tapegpt.system.compiler import require_compiler

LOG = logging.getLogger("tapegpt")


def run(
    folder: Path, data: Sequence[Path] | None, last: bool, skip_unknown: bool, as_json: bool
) -> int:
    """Measure and print. Returns the exit code.

    skip_unknown: leave out what the run has no characters for, which is said.
    """
    if skip_unknown and data is None:
        raise UsageError("--skip-unknown is for a text of --data: leave it out")
    saved = load(folder if last else best_of(folder))
    left_out = 0
    if data is not None:
        name = " ".join(map(str, data))
        corpus = read(data, saved.training, saved.corpus_digest)
        if skip_unknown:
            corpus, left_out = _known_part(corpus, saved, name)
        else:
            check_known(corpus, saved, data)
        parts, trained_on = {name: whole(corpus, saved.model.block_size)}, None
    else:
        corpus = corpus_of(saved, history_of(folder))
        named = parts_of(corpus, saved.training, saved.model.block_size)._asdict()
        parts = {name.replace("_", " "): part for name, part in named.items() if part}
        trained_on = "training"

    require_compiler()
    from tapegpt.runs.measure import measure
    from tapegpt.train.progress import Compiling

    with Compiling(quiet=False):
        measured = {name: measure(saved, part, name == trained_on) for name, part in parts.items()}
    if as_json:
        shown = [
            {"text": name, **asdict(result), "left_out": left_out}
            for name, result in measured.items()
        ]
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


def _known_part(corpus: Corpus, run: Run, name: str) -> tuple[Corpus, int]:
    known, left_out = known_part(corpus, run)
    what = "characters" if isinstance(corpus, TokenStream) else "documents"
    if len(known) == 0:
        raise TapegptError(
            f"the run does not know the characters of any of the {left_out} {what} of {name}:"
            " choose another --data"
        )
    if left_out:
        LOG.warning(
            "%s: %d of %d %s are left out, whose characters the run does not know",
            name,
            left_out,
            len(corpus),
            what,
        )
    return known, left_out
