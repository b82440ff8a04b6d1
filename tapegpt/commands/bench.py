"""tapegpt bench: one model at three granularities, against the machine's peak."""

import json
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tapegpt.corpus import Tokenizer, default_corpus, read_documents
from tapegpt.errors import TapegptError, UsageError
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.system.atomic_files import check_writable, move_aside, write_one
from tapegpt.system.host import cpu_name, peak_gflops, vector_name
from tapegpt.train.sweep_size import check_memory
from tapegpt.train.trainer import Trainer

LADDER = (("scalar", 1), ("dot", 1), ("vector", 1), ("vector", 16))
REPEATS = 7
FIGURES = {"cpu", "vector", "peak_gflops", "rows"}
LARGEST = 1 << 20  # bytes of a file of them
LOG = logging.getLogger("tapegpt")
SECONDS = 0.3  # of training for one measurement


@dataclass(frozen=True, slots=True)
class Row:
    """One rung of the ladder; medians over the repeats."""

    granularity: str
    n_embd: int
    batch_size: int
    dtype: str
    us_per_document: float
    gflops: float
    share_of_peak: float


def run(models: Sequence[ModelConfig], path: Path | None) -> int:
    """Measure, print the table, write it as JSON. Returns the exit code."""
    if path is not None:
        with _writing(path):  # before minutes of measuring, not after them
            check_writable(path)
            _check_figures(path)
    documents = read_documents(default_corpus())
    vocab_size = Tokenizer.from_documents(documents).vocab_size
    for model in models:
        for rung in LADDER:
            check_memory(model, _training(*rung), vocab_size)
    peak = peak_gflops()
    print(f"{cpu_name()}; vectors of {vector_name()}")
    print(f"peak of one core: {peak:.1f} GFLOP/s in float32, measured")
    print("granularity  n_embd  batch  us/document  GFLOP/s  share of peak")
    rows = []
    for model in models:
        for granularity, batch_size in LADDER:
            row = measure(model, granularity, batch_size, documents, peak)
            rows.append(row)
            print(
                f"{row.granularity:11}  {row.n_embd:6}  {row.batch_size:5}"
                f"  {row.us_per_document:11.2f}  {row.gflops:7.2f}  {row.share_of_peak:13.1%}",
                flush=True,
            )
    if path is not None:
        result = {
            "cpu": cpu_name(),
            "vector": vector_name(),
            "peak_gflops": peak,
            "rows": [asdict(row) for row in rows],
        }
        with _writing(path):
            if _holds_something(path):
                LOG.info("the earlier figures of %s are in %s now", path, move_aside(path))
            write_one(path, (json.dumps(result, indent=2) + "\n").encode())
    return 0


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0  # nor is anything lost in a device


def _check_figures(path: Path) -> None:
    """Refuse a file that holds anything but figures of an earlier measurement."""
    if not _holds_something(path):
        return
    try:
        with path.open("rb") as file:
            earlier = json.loads(file.read(LARGEST))
    except (ValueError, RecursionError):
        earlier = None
    if not isinstance(earlier, dict) or not earlier.keys() >= FIGURES:
        raise UsageError(
            f"--json {str(path)!r} holds other things than figures of bench: choose another file"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what is wrong with the file into one line that names it."""
    try:
        yield
    except OSError as error:
        raise TapegptError(
            f"cannot write --json {str(path)!r}: {error.strerror}: choose another file"
        ) from error


def measure(
    model: ModelConfig, granularity: str, batch_size: int, documents: Sequence[str], peak: float
) -> Row:
    """Train on the same documents again and again; compilation is not timed."""
    config = _training(granularity, batch_size)
    trainer = Trainer(model, config, documents)
    trainer.advance(1)
    begin = time.perf_counter()
    trainer.advance(1)
    steps = max(1, round(SECONDS / (time.perf_counter() - begin)))
    seconds, flops = [], []
    for _ in range(REPEATS):
        flops.append(trainer.flops(steps))
        begin = time.perf_counter()
        trainer.advance(steps)
        seconds.append(time.perf_counter() - begin)
    gflops = statistics.median(f / s / 1e9 for f, s in zip(flops, seconds, strict=True))
    return Row(
        granularity=granularity,
        n_embd=model.n_embd,
        batch_size=batch_size,
        dtype=config.dtype,
        us_per_document=statistics.median(seconds) / steps / batch_size * 1e6,
        gflops=gflops,
        share_of_peak=gflops / peak,
    )


def _training(granularity: str, batch_size: int) -> TrainConfig:
    # A rate so low that no width diverges, however long it is measured.
    return TrainConfig(
        granularity=granularity, batch_size=batch_size, steps=2**40, learning_rate=1e-5
    )
