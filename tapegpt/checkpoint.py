"""A run on disk: the weights and everything else that training needs to go on from them.

A run is a folder with these files:

    tensors-<16 digits>.safetensors   weights ("wte") and optimizer state ("adam.m/wte");
                                      the digits begin the file's SHA-256
    run.json                          configuration, vocabulary, step, random state, corpus and the
                                      tensors' SHA-256; the first line digests all the others
    run-history.json                  how the run came about, see runs/history.py; may be missing

A save puts the tensors beside the old ones, then moves run.json over the old one, then deletes what
is no longer named: at every moment the folder holds one whole run. A load believes nothing before
its digest has been checked, and derives the tensors' file name, size and shapes by itself.
"""

import errno
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from tapegpt.corpus.tokenizer import ALL_BYTES, Tokenizer, vocab_size_of
from tapegpt.errors import TapegptError, UsageError
from tapegpt.models.registry import parameter_shapes, parameter_totals
from tapegpt.runs.digest import DIGEST, FIRST, check_digest, with_digest
from tapegpt.runs.history import HISTORY, History, read_history, render
from tapegpt.runs.tensors import pieces_of, some_rows
from tapegpt.setting import LARGEST_STEPS
from tapegpt.settings import ModelConfig, TrainConfig, from_dict
from tapegpt.system.atomic_files import delete, read, write
from tapegpt.train.optimizers import OPTIMIZERS

FORMAT = 2
AVERAGE = "average"  # of the weights, where the training wants one
COUNTED = "counted"  # what the network's counts are of
MOST_COUNTED = 1 << 30

MANIFEST = "run.json"
MANIFEST_LIMIT = 8 << 20  # bytes: a vocabulary of all of Unicode needs half of it
# Of what settings, states and brackets need 700; of characters, there is one of each.
PUNCTUATION_LIMIT = 2000  # commas and opening brackets of a manifest
HEADER_LEAST, HEADER_LIMIT = 50, 256  # bytes of safetensors header for each tensor
OURS = r"(tensors-[0-9a-f]{16}\.safetensors|run\.json|run-history\.json)(\.new)?"  # of saves
DAMAGE = (ValueError, LookupError, RecursionError, SafetensorError, UsageError)

Array = NDArray[Any]


class RunError(TapegptError):
    """A run could not be saved, or what lies in its folder is not a whole, undamaged run."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Training after `step` completed steps. Arrays are unpadded and of `training.dtype`."""

    model: ModelConfig
    training: TrainConfig
    characters: str  # the vocabulary, without BOS, which comes last
    step: int
    elapsed: float  # seconds of training, where they are its budget, else 0
    best_loss: float | None  # of all evaluations
    stale: int  # evaluations since that one
    random_state: tuple[Any, ...]  # of random.Random.getstate()
    documents: int  # or characters of a text
    corpus_digest: str
    history: History | None = None  # which `load` leaves where it is: see load_history
    # Tokens that a network with --counting has counts of, (tokens,), see `table_of`; of the
    # smallest type. None where there are no counts, or where `load_manifest` leaves them.
    counted: Array | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)  # as parameter_shapes names them
    optimizer: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)  # {"adam.m": {…}, …}

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.characters, not self.training.text)

    @property
    def vocab_size(self) -> int:
        return vocab_size_of(self.characters, not self.training.text)

    @property
    def size(self) -> str:
        """How large the corpus is, in words."""
        return f"{self.documents} {'characters' if self.training.text else 'documents'}"

    @property
    def weights(self) -> Mapping[str, Array]:
        """What to predict with: the averaged weights where there are some."""
        return self.optimizer.get(AVERAGE, self.tensors)


def state_names(training: TrainConfig) -> tuple[str, ...]:
    """What there is of every parameter beside its value."""
    averages = (AVERAGE,) if training.averaging > 0 else ()
    return (*OPTIMIZERS[training.optimizer].state, *averages)


def save(run: Run, folder: Path) -> None:
    """Make `run` the run in `folder`, or raise `RunError` and leave the one that is there."""
    try:
        tensors = dict(run.tensors)
        for slot, arrays in run.optimizer.items():
            tensors |= {f"{slot}/{name}": array for name, array in arrays.items()}
        if run.model.counting:
            nothing = np.zeros(0, _counted_type(run))
            tensors[COUNTED] = nothing if run.counted is None else run.counted
        _check_tensors(tensors, run)
        digest = hashlib.sha256()
        for piece in pieces_of(tensors):
            digest.update(piece)
        target = _tensors_name(digest.hexdigest())
        count = len(tensors[COUNTED]) if run.model.counting else 0
        text = _render(run, digest.hexdigest(), count)
        _parse(text)  # what could not be read again is not written
    except DAMAGE as error:
        raise RunError(f"cannot save the run: {error}") from error
    contents = {target: pieces_of(tensors)}
    if run.history is not None:
        contents[HISTORY] = iter([render(run.history)])
    contents[MANIFEST] = iter([text])  # the last: it never names what is not there
    try:
        write(folder, contents)
    except OSError as error:
        raise RunError(
            f"cannot save the run in {str(folder)!r}: {error.strerror or error}: "
            "check space and permissions there, or choose another --out"
        ) from error
    delete(folder, OURS, keep=contents)


def discard(folder: Path) -> None:
    """Delete the run in `folder`, if there is one, and the folder if it holds nothing else."""
    delete(folder, OURS, keep=())
    with suppress(OSError):
        folder.rmdir()


def load(folder: Path) -> Run:
    """The run in `folder`; `RunError` if there is none or a single bit is not as it was saved."""
    path = folder / MANIFEST
    with _refusing(path):
        text = read(path, MANIFEST_LIMIT)
    try:
        return _load(folder, text)
    except RunError:
        with _refusing(path):
            if read(path, MANIFEST_LIMIT) == text:
                raise
    return load(folder)  # a training process has just replaced the run


def load_manifest(folder: Path) -> Run:
    """The run in `folder` without its arrays; `RunError` as for `load`."""
    path = folder / MANIFEST
    with _refusing(path):
        return _parse(read(path, MANIFEST_LIMIT)).run


def load_history(folder: Path) -> History | None:
    """How the run in `folder` came about, if that was saved; `RunError` if it is damaged."""
    path = folder / HISTORY
    with _refusing(path, "delete it: the run is whole without it"):
        return read_history(folder)


def looks_like_a_run(folder: Path) -> bool:
    """Whether the folder has a run.json that a save may have written, damaged or not.

    Raises `RunError` where that cannot be found out.
    """
    path = folder / MANIFEST
    with _refusing(path):
        try:
            return read(path, MANIFEST_LIMIT).startswith(FIRST)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return False
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise


def _load(folder: Path, text: bytes) -> Run:
    with _refusing(folder / MANIFEST):
        run, digest, counted = _parse(text)
    # A Path would intern the name, see atomic_files.py.
    path = os.path.join(folder, _tensors_name(digest))
    names, numbers = parameter_totals(run.model, run.vocab_size)
    arrays = 1 + len(state_names(run.training))
    tensors_in_file = arrays * names + (run.model.counting > 0)
    data = 8 + arrays * numbers * np.dtype(run.training.dtype).itemsize
    data += counted * _counted_type(run).itemsize
    with _refusing(path):
        # Before weights are named one by one, the file's size bears out how many there are.
        least, most = (data + header * tensors_in_file for header in (HEADER_LEAST, HEADER_LIMIT))
        blob = read(path, most, least)
        if hashlib.sha256(blob).hexdigest() != digest:
            raise ValueError("its bytes do not match their digest")
        tensors = safetensors.numpy.load(blob)
        if run.model.counting and len(tensors[COUNTED]) != counted:
            raise ValueError(f"tensor {COUNTED!r} has not as many tokens as {MANIFEST} says")
        _check_tensors(tensors, run)
        shapes = _shapes(run)
    weights = [name for name in shapes if "/" not in name]
    optimizer = {
        slot: {name: tensors[f"{slot}/{name}"] for name in weights}
        for slot in state_names(run.training)
    }
    return replace(
        run,
        tensors={name: tensors[name] for name in weights},
        optimizer=optimizer,
        counted=tensors.get(COUNTED),
    )


def _counted_type(run: Run) -> np.dtype[Any]:
    """The smallest type of tokens."""
    return np.dtype(np.min_scalar_type(run.vocab_size - 1))


def _render(run: Run, digest: str, counted: int, named: Container[str] | None = None) -> bytes:
    """The text of run.json, one setting a line; `digest` is that of the tensors' file.

    named: the settings of the model and of the training that it names, if not all of them.
    """

    def settings_of(config: ModelConfig | TrainConfig) -> dict[str, Any]:
        values = asdict(config)
        return {name: values[name] for name in values if named is None or name in named}

    settings = {
        "format": FORMAT,
        "model": settings_of(run.model),
        "training": settings_of(run.training),
        "characters": run.characters,
        "step": run.step,
        "elapsed": run.elapsed,
        "best_loss": run.best_loss,
        "stale": run.stale,
        "random_state": run.random_state,
        "documents": run.documents,
        "corpus_digest": run.corpus_digest,
        "tensors_digest": digest,
    }
    if run.model.counting:
        settings["counted"] = counted
    lines = (
        f'"{name}": {json.dumps(value, ensure_ascii=False, allow_nan=False)}'
        for name, value in settings.items()
    )
    return with_digest((",\n".join(lines) + "}\n").encode())


class _Parsed(NamedTuple):
    run: Run
    digest: str  # of the tensors' file
    counted: int  # tokens


def _parse(text: bytes) -> _Parsed:
    """The inverse of `_render`, without the arrays; one of `DAMAGE` for any other text."""
    check_digest(text)
    if sum(map(text.count, (b",", b"[", b"{"))) > PUNCTUATION_LIMIT:
        raise ValueError("it is not written as tapegpt writes it")
    data = json.loads(text)
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r:.20}, and this version reads {FORMAT}")
    generator = random.Random()
    try:
        version, words, gauss = data["random_state"]
        generator.setstate((version, tuple(words), gauss))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its random_state cannot be right") from error
    characters, step, documents = data["characters"], data["step"], data["documents"]
    elapsed, best_loss, stale = data["elapsed"], data["best_loss"], data["stale"]
    corpus_digest, digest = data["corpus_digest"], data["tensors_digest"]
    counted = data.get("counted", 0)
    for name, valid in {
        "characters": type(characters) is str and 0 < len(characters) == len(set(characters)),
        "step": type(step) is int and 0 <= step <= LARGEST_STEPS,
        "elapsed": type(elapsed) is float and 0 <= elapsed < math.inf,
        "best_loss": best_loss is None or (type(best_loss) is float and math.isfinite(best_loss)),
        "stale": type(stale) is int and 0 <= stale <= LARGEST_STEPS,
        "random_state": gauss is None or type(gauss) is float,
        "documents": type(documents) is int and 0 < documents < 1 << 53,
        "corpus_digest": type(corpus_digest) is str and re.fullmatch(DIGEST, corpus_digest),
        "tensors_digest": type(digest) is str and re.fullmatch(DIGEST, digest),
        "counted": type(counted) is int and 0 <= counted <= MOST_COUNTED,
    }.items():
        if not valid:
            raise ValueError(f"its {name} cannot be right")
    run = Run(
        from_dict(ModelConfig, data["model"]),
        from_dict(TrainConfig, data["training"]),
        characters,
        step,
        elapsed,
        best_loss,
        stale,
        generator.getstate(),
        documents,
        corpus_digest,
    )
    if run.training.bytes and characters != ALL_BYTES:
        raise ValueError("its characters cannot be right")
    # An older version may not have known all settings.
    named = {*data["model"], *data["training"]}
    if (
        _render(run, digest, counted, named) != text
    ):  # a key too many or twice, true for 1, 1 for 1.0, spaces, …
        raise ValueError("it is not written as tapegpt writes it")
    return _Parsed(run, digest, counted)


def _shapes(run: Run) -> dict[str, tuple[int, int]]:
    """What the tensors' file must hold: the weights, and the optimizer's state of each."""
    weights = parameter_shapes(run.model, run.vocab_size)
    slots = state_names(run.training)
    return weights | {f"{slot}/{name}": weights[name] for slot in slots for name in weights}


def _check_tensors(tensors: Mapping[str, Array], run: Run) -> None:
    shapes, dtype = _shapes(run), run.training.dtype
    if run.model.counting and (counted := tensors.get(COUNTED)) is not None:
        if counted.dtype != _counted_type(run) or counted.ndim != 1:
            raise ValueError(f"tensor {COUNTED!r} is {counted.dtype} {counted.shape}, no tokens")
        if counted.size > 0 and counted.max() >= run.vocab_size:
            raise ValueError(f"tensor {COUNTED!r} holds what is no token")
        tensors = {name: array for name, array in tensors.items() if name != COUNTED}
    elif run.model.counting:
        raise ValueError(f"tensor {COUNTED!r} is missing")
    for name in sorted(tensors.keys() ^ shapes.keys()):
        raise ValueError(f"tensor {name!r} is {'unknown' if name in tensors else 'missing'}")
    for name, array in tensors.items():
        if array.dtype != dtype or array.shape != shapes[name]:
            raise ValueError(
                f"tensor {name!r} is {array.dtype} {array.shape}, not {dtype} {shapes[name]}"
            )
        if not all(np.isfinite(rows).all() for rows in some_rows(array)):
            raise ValueError(f"tensor {name!r} holds a value that is not finite")


def _tensors_name(digest: str) -> str:
    return f"tensors-{digest[:16]}.safetensors"


@contextmanager
def _refusing(
    path: Path | str, remedy: str = "restore the folder from a copy, or train again"
) -> Iterator[None]:
    """Turn whatever is wrong with a file into one line that names it and the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.basename(path) == MANIFEST:
            remedy = "train a run first (tapegpt train), or name the folder of one"
        problem = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise RunError(f"cannot read {str(path)!r}: {problem}: {remedy}") from error
    except MemoryError as error:
        raise RunError(
            f"{str(path)!r} does not fit into memory: use a machine that has more"
        ) from error
    except DAMAGE as error:
        problem = str(error) or type(error).__name__
        raise RunError(f"{str(path)!r} is damaged: {problem}: {remedy}") from error
