"""tapegpt info: what is in a run, without computing anything."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tapegpt.checkpoint import Run, load_manifest
from tapegpt.commands.terminal import printable
from tapegpt.corpus.files import STANDARD_INPUT
from tapegpt.models.registry import parameter_totals
from tapegpt.run_folder import best_of, how_to_go_on
from tapegpt.runs.history import History
from tapegpt.runs.text import history_of, remembered_text
from tapegpt.setting import settings_of, unmet
from tapegpt.settings import ModelConfig, TrainConfig


def run(folder: Path, as_json: bool, as_toml: bool) -> int:
    """Print what the run is. Returns the exit code."""
    saved, history = load_manifest(folder), history_of(folder)
    best = best_of(folder)
    best_step = load_manifest(best).step if best != folder else None
    if as_toml:
        for line in _toml(folder, saved, history):
            print(line)
    elif as_json:
        print(json.dumps(_facts(folder, saved, history, best_step), indent=2))
    else:
        for name, value in _lines(folder, saved, history, best_step):
            print(f"{name:10} {printable(value)}")
    return 0


def _toml(folder: Path, run: Run, history: History | None) -> Iterator[str]:
    """A file for train --config, which trains on the same text as the run."""
    yield printable(f"# The run in {folder}.")
    if history is None:
        yield "# It does not say what it was trained on: add data = FILE."
    else:
        yield printable(f"# It was begun by: {history.sessions[0].command}")
        settings: dict[str, Any] = {"data": list(history.text)} if history.text else {}
        if str(STANDARD_INPUT) in history.text:
            yield "# The text was standard input, which - stands for."
        yield from map(_assigned, settings, settings.values())
    used = _used(run.model, run.training)
    yield from map(_assigned, used, used.values())


def _assigned(name: str, value: object) -> str:
    """A line of TOML: strings and lists are written as JSON's are, so are numbers and booleans."""
    return f"{name.replace('_', '-')} = {json.dumps(value, ensure_ascii=False)}"


def _facts(
    folder: Path, run: Run, history: History | None, best_step: int | None
) -> dict[str, Any]:
    return {
        "run": str(folder),
        "model": asdict(run.model),
        "training": asdict(run.training),
        "parameters": _parameters(run),
        "documents": run.documents,
        "characters": run.characters,
        "corpus_digest": run.corpus_digest,
        "step": run.step,
        "best_step": best_step,
        "best_loss": run.best_loss,
        "history": None if history is None else asdict(history),
    }


def _lines(
    folder: Path, run: Run, history: History | None, best_step: int | None
) -> list[tuple[str, str]]:
    """The same, in words."""
    training = run.training
    text = f"{run.size}, {len(run.characters)} characters"
    if history is not None:
        text = f"{' and '.join(map(str, remembered_text(history)))}: {text}"
    lines = [
        ("run", str(folder)),
        ("model", f"{_shown(run.model)}; {_parameters(run)} parameters"),
        ("text", text),
        ("training", _shown(training)),
        ("done", _done(run)),
    ]
    losses = history.losses[-1] if history is not None and history.losses else None
    if losses is not None and losses.loss is not None:
        lines.append(("loss", f"{losses.loss:.4f} at step {losses.step}, smoothed"))
    if run.best_loss is not None:
        at = "" if best_step is None else f" at step {best_step}, which sample uses"
        lines.append(("val_loss", f"{run.best_loss:.4f}{at}"))
    if history is not None and history.test_loss is not None:
        lines.append(("test_loss", f"{history.test_loss:.4f}"))
    for session in history.sessions if history is not None else ():
        lines.append(("began", f"{session.began} by tapegpt {session.version}: {session.command}"))
    lines.append(("go on", _going_on(folder, run)))
    return lines


def _used(*configs: ModelConfig | TrainConfig) -> dict[str, Any]:
    """The settings that do something."""
    values = {name: value for config in configs for name, value in asdict(config).items()}
    known = {name: it for config in configs for name, (it, _) in settings_of(config).items()}
    return {
        name: value
        for name, value in values.items()
        if value is not None and not unmet(known[name], values)
    }


def _shown(config: ModelConfig | TrainConfig) -> str:
    """The settings that do something, and are not as they would be by themselves."""
    values = asdict(config)
    shown = []
    for name, (known, default) in settings_of(config).items():
        always = name in ("model", "n_layer", "n_embd", "block_size", "dtype", "learning_rate")
        value = values[name]
        differs = always or value != default
        if differs and value is not None and not unmet(known, values):
            shown.append(f"{name} {value:g}" if type(value) is float else f"{name} {value}")
    return ", ".join(shown)


def _parameters(run: Run) -> int:
    return parameter_totals(run.model, run.vocab_size)[1]


def _done(run: Run) -> str:
    if run.training.steps is not None:
        return f"{run.step} of {run.training.steps} steps"
    return f"{run.step} steps in {run.elapsed:.1f} of {run.training.seconds:g} seconds"


def _going_on(folder: Path, run: Run) -> str:
    if run.training.steps is not None and run.step >= run.training.steps:
        return how_to_go_on(folder, "--steps", str(2 * run.step))
    if run.training.seconds is not None and run.elapsed >= run.training.seconds:
        return how_to_go_on(folder, "--seconds", f"{2 * run.training.seconds:g}")
    return how_to_go_on(folder)
