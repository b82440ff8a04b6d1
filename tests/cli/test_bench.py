"""`bench`."""

import json
import re
from pathlib import Path

import pytest

from tapegpt.commands import bench
from tapegpt.settings import ModelConfig, TrainConfig
from tapegpt.train.trainer import Trainer


def test_bench(call, monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.005)
    out, _ = call("bench", "--n-embd", "16", "8", "--json", "b.json")
    result = json.loads(Path("b.json").read_text())
    assert set(result) == {"cpu", "vector", "peak_gflops", "rows"}
    assert result["cpu"]
    assert re.match(r"\d+ bit, \d+ x float32", result["vector"])
    assert result["peak_gflops"] > 0
    ladder = [("scalar", 1), ("dot", 1), ("vector", 1), ("vector", 16)]
    kinds = [(row["n_embd"], row["granularity"], row["batch_size"]) for row in result["rows"]]
    assert kinds == [(width, *rung) for width in (16, 8) for rung in ladder]
    for row in result["rows"]:
        assert set(row) == {
            "granularity", "n_embd", "batch_size", "dtype", "us_per_document", "gflops",
            "share_of_peak",
        }  # fmt: skip
        assert row["dtype"] == "float32"
        assert row["us_per_document"] > 0
        assert row["share_of_peak"] == pytest.approx(row["gflops"] / result["peak_gflops"])
    assert len(out.splitlines()) == 3 + len(result["rows"])
    assert result["cpu"] in out


def test_bench_counts_the_operations_of_the_documents_it_trains_on(call, monkeypatch):
    """Time stands still but for one tick a reading, so that every figure is known."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks) / 1000)
    documents = ["abc", "ab"]
    row = bench.measure(ModelConfig(), "vector", 4, documents, peak=2.0)
    trainer = Trainer(ModelConfig(), TrainConfig(batch_size=4), documents)
    steps = round(bench.SECONDS / 0.001)
    assert row.us_per_document == pytest.approx(1000 / steps / 4)
    assert row.gflops == pytest.approx(trainer.flops(steps) / 0.001 / 1e9)
    assert row.share_of_peak == pytest.approx(row.gflops / 2)


def test_bench_replaces_nothing(call, monkeypatch, refused):
    monkeypatch.setattr(bench, "LADDER", ())
    call("bench", "--json", "b.json")
    earlier = Path("b.json").read_bytes()
    _, err = call("bench", "--json", "b.json")
    assert "the earlier figures of b.json are in b-1.json now\n" in err
    assert Path("b-1.json").read_bytes() == earlier
    assert set(json.loads(Path("b.json").read_text())) == bench.FIGURES
    for text in ("notes", "[]", '{"rows": []}', "[" * 10**5):
        Path("notes").write_text(text)
        refused("bench", "--json", "notes", names="--json 'notes' holds other things than figures")


def test_bench_where_no_figures_can_be_written(call, monkeypatch):
    monkeypatch.setattr(bench, "LADDER", ())
    _, err = call("bench", "--json", "missing/b.json", code=1)
    assert err.startswith("tapegpt: error: cannot write --json 'missing/b.json': No such file")
