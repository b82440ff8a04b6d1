"""Training and sampling in a loop: memory stays flat, and steps take no longer in the end."""

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest
from command_line import SKY
from saved_run import make_run, python

from tapegpt.checkpoint import load, save
from tapegpt.corpus import read_documents
from tapegpt.sampling import sample
from tapegpt.setting import GRANULARITIES
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.train.trainer import Trainer


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def soak(seconds):
    """Print the memory after every turn, and the seconds that each took for some training steps.

    A turn trains, evaluates, saves, loads, goes on from there and samples, at every granularity.
    """
    documents = read_documents(SKY)
    memory, times, start = [], [], time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while time.perf_counter() < start + seconds:
            took = 0.0
            for granularity in GRANULARITIES:
                training = TrainConfig(steps=400, val_fraction=0.1, granularity=granularity)
                trainer = Trainer(ModelConfig(n_embd=8, n_head=2), training, documents)
                begin = time.perf_counter()
                trainer.advance(200)
                took += time.perf_counter() - begin
                trainer.evaluate()
                save(trainer.snapshot(), folder)
                trainer = Trainer.resumed(load(folder), documents)
                trainer.advance(200)
                assert len(list(sample(load(folder), SampleConfig(num_samples=300)))) == 300
            times.append(took)
            memory.append(resident())
    print(json.dumps([memory, times]))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of the process")
def test_memory_and_step_time_stay_as_they_are():
    """30 minutes, or TAPEGPT_SOAK_SECONDS."""
    seconds = float(os.environ.get("TAPEGPT_SOAK_SECONDS", "1800"))
    command = "import sys, test_soak as t\nt.soak(float(sys.argv[1]))"
    memory, times = json.loads(python(command, seconds))
    quarter = len(times) // 4
    assert quarter >= 10
    warm = memory[max(quarter, min(400, 2 * quarter)) :]  # the allocator settles in some 300 turns
    first, last = (statistics.median(part) for part in (times[:quarter], times[-quarter:]))
    print(f"{len(times)} turns; memory {min(warm)} to {max(warm)}; times {first:.4f}, {last:.4f}")
    assert max(warm) <= 1.01 * min(warm)
    assert last <= 1.25 * first


def test_saves_and_loads_intern_no_names(tmp_path, monkeypatch):
    """Of interned names that come and go, Python's table of them grows, though none stays."""
    interned = []
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)
    save(make_run(), tmp_path)
    load(tmp_path)
    assert [name for name in interned if "tensors" in name or name.endswith(".new")] == []
