"""What is shown while a training goes on: the time left is what it then takes."""

import logging
import math
import re
import sys
import time

import numpy as np
import pytest
from command_line import SKY

from tapegpt.commands import train
from tapegpt.settings import TrainConfig
from tapegpt.train import loop, progress
from tapegpt.train.amounts import amount, brief, duration
from tapegpt.train.progress import Compiling, Progress, SmoothedLoss, State
from tapegpt.train.stopping import budget_of
from tapegpt.train.trainer import Trainer


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps", "3000", "--val-fraction", "0.2"],
        ["--steps", "3000", "--val-fraction", "0.2", "--eval-every", "130"],
        ["--steps", "3000", "--val-fraction", "0.2", "--test-fraction", "0.2"],
        ["--steps", "3000"],
        ["--seconds", "30", "--n-layer", "1", "--val-fraction", "0.2"],
        ["--seconds", "30", "--n-layer", "1", "--val-fraction", "0.2", "--eval-every", "100"],
    ],
    ids=" ".join,
)
def test_the_time_left_is_true(call, monkeypatch, flags):
    """By a clock that steps, evaluations and tests alone move; steps differ, as they do."""
    now, generator = [0.0], np.random.default_rng(1)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(trainer, count, pace=0.0):
        now[0] += float(0.01 * generator.uniform(0.8, 1.2, count).sum())
        trainer.step += count
        return np.ones(count)

    def evaluate(trainer):
        now[0] += float(generator.uniform(0.8, 1.2))
        trainer.best_loss, trainer.stale = 1.0, 0
        return 1.0

    def test(trainer, weights):
        now[0] += 1.0
        return 1.0

    shown = []

    def update(self, state):
        shown.append((now[0], self.left.at(state.step, state.elapsed)))

    for name, function in (("advance", advance), ("evaluate", evaluate), ("test", test)):
        monkeypatch.setattr(Trainer, name, function)
    monkeypatch.setattr(Progress, "update", update)
    monkeypatch.setattr(loop, "_sample", lambda trainer: "")
    monkeypatch.setattr(train, "peak_gflops", lambda: 100.0)  # whose clock must not stand still
    call("train", "--data", SKY, *flags)
    end = shown[-1][0]
    assert end >= 30 * 0.9
    assert shown[-1][1] == 0
    for share in (0.25, 0.5, 0.75):
        at, left = min(shown, key=lambda point: abs(point[0] - share * end))
        assert abs(left - (end - at)) <= 0.15 * (end - at), share


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_at_least_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shown = Progress(budget_of(TrainConfig(steps=10**6), 100), 0, 0.0, 6.5, quiet=False)
    times = []
    for step in range(1, 2000):
        now[0] += 0.5
        shown.update(State(step, now[0], 2.0, None, None, None))
        if lines(capsys):
            times.append(now[0])
    assert times[0] == 0.5
    assert max(np.diff(times)) <= 10
    assert len(times) < 110


def test_every_evaluation_has_a_line_with_a_sample(call):
    flags = ["--steps", "60", "--val-fraction", "0.2", "--eval-every", "7"]
    _, err = call("train", "--data", SKY, *flags)
    found = re.findall(
        r"^step (\d+)/60 loss \d\.\d{4}, val_loss \d\.\d{4}, counting \d\.\d{4},"
        r" \d+ steps/s, \S+ tokens/s(?:, 0 s left)?"
        r" \| [a-z]{0,16}$",
        err,
        re.M,
    )
    assert [int(step) for step in found] == [*range(7, 57, 7), 60]
    _, quiet = call("train", "--data", SKY, *flags, "--quiet", "--out", "b")
    assert quiet == ""


class Terminal:
    """Where stderr is a terminal: what is written there."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_live_line_fits_the_window(monkeypatch, columns):
    import shutil

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (columns, 24))
    monkeypatch.setenv("COLUMNS", str(columns))
    assert shutil.get_terminal_size().columns == columns
    with Progress(budget_of(TrainConfig(steps=1000), 100), 0, 0.0, 6.5, quiet=False) as shown:
        shown._bar.mininterval = 0
        for step in range(10, 1001, 10):
            val_loss = 2.25 if step % 500 == 0 else None
            counting, sample = (2.5, "mara") if val_loss else (None, None)
            shown.update(State(step, 0.1 * step, 2.5, val_loss, counting, sample))
    live = [line for line in terminal.text.replace("\n", "\r").split("\r") if "%" in line]
    assert len(live) > 50
    assert all(len(line) <= columns for line in live)
    assert terminal.text.count("| mara\n") == 2
    if columns >= 80:
        assert (
            "100% 1000/1000, loss 2.5000, val_loss 2.2500, 10 steps/s, 65 tokens/s, 0 s" in live[-1]
        )
    assert not re.search("\x1b\\[[0-9;]*m", terminal.text)  # no colours, whatever NO_COLOR says


def test_how_many_kernels_are_ready(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with Compiling(quiet=False, total=40) as compiling:
        for ready in range(1, 41):
            now[0] += 1.0
            assert compiling.update(ready)
    assert lines(capsys) == [f"compiling: {n} of 40 kernels" for n in (10, 20, 30, 40)]
    with Compiling(quiet=True, total=2) as compiling:
        now[0] += 60
        compiling.update(1)
    assert lines(capsys) == []
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Compiling(quiet=False, total=3) as compiling:
        now[0] += 0.1
        compiling.update(1)
        assert terminal.text == ""
        now[0] += 1
        compiling.update(2)
    assert "compiling: 2 of 3 kernels" in terminal.text


def test_a_kernel_that_is_compiled_is_shown_at_once(monkeypatch):
    import numba

    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    terminal, shown = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)

    class Waited(Compiling):
        def _show(self):
            super()._show()
            shown.append(terminal.text)

    with Waited(quiet=False, total=3) as compiling:
        compiling.update(1)
        assert terminal.text == ""
        numba.njit(lambda x: x + 1)(1)
    assert "compiling: 1 of 3 kernels" in shown[0]


def test_where_nobody_knows_how_many_there_are_the_line_goes_with_the_kernel(monkeypatch):
    import numba

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Compiling(quiet=False):
        for _ in range(2):
            numba.njit(lambda x: x + 1)(1)
            assert terminal.text.endswith("\r")  # of an empty line
            print("a text", file=terminal)
    assert re.search(r"\rcompiling: 00:0\d", terminal.text)
    with Compiling(quiet=True):
        numba.njit(lambda x: x + 1)(1)
    assert terminal.text.endswith("a text\n")


def test_a_signal_ends_compiling_after_the_kernel(call, monkeypatch):
    import os
    import signal
    from pathlib import Path

    from tapegpt.checkpoint import load
    from tapegpt.graph import compile as graph_compile

    calls = []
    real = graph_compile.load_kernels

    def load_kernels(table, dtype, kernels, direction):
        calls.append(list(kernels))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        real(table, dtype, kernels, direction)

    monkeypatch.setattr(graph_compile, "load_kernels", load_kernels)
    _, err = call("train", "--data", SKY, code=130)
    assert len(calls) == 3
    assert "stopped after step 0 of 1000; saved in out: go on with tapegpt train --resume" in err
    assert load(Path("out")).step == 0


def test_the_smoothed_loss():
    smoothed = SmoothedLoss()
    assert math.isnan(smoothed.value)
    one, other = SmoothedLoss(), SmoothedLoss()
    losses = np.random.default_rng(0).normal(3, 1, 500)
    for loss in losses:
        one.add(np.array([loss]))
    weights = progress.KEPT ** np.arange(499, -1, -1)
    assert one.value == pytest.approx((weights * losses).sum() / weights.sum())
    other.add(np.full(7, 2.5))
    assert other.value == pytest.approx(2.5)


def test_amounts():
    assert [amount(x) for x in (0, 12.4, 999.4, 999.6, 12345, 1.5e6, 2e9)] == [
        "0", "12", "999", "1k", "12.3k", "1.5M", "2G",
    ]  # fmt: skip
    assert [duration(x) for x in (0.4, 99.4, 99.6, 3599, 3600, 90061)] == [
        "0 s", "99 s", "1:40 min", "59:59 min", "1:00:00 h", "25:01:01 h",
    ]  # fmt: skip
    assert [brief(x) for x in (0.03251, 0.5, 1.04, 31.004872, 3600.52)] == [
        "0.033", "0.5", "1.0", "31.0", "3600.5",
    ]  # fmt: skip


def test_messages_come_above_the_live_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log, handler = logging.getLogger("tapegpt"), logging.StreamHandler(terminal)
    log.addHandler(handler)
    try:
        shown = Progress(budget_of(TrainConfig(steps=100), 100), 0, 0.0, 6.5, quiet=False)
        with shown as live:
            live.update(State(10, 1.0, 2.5, None, None, None))
            log.warning("cannot save")
            assert handler not in log.handlers
        assert handler in log.handlers
    finally:
        log.removeHandler(handler)
    lines = terminal.text.split("\n")
    assert lines[0].split("\r")[-1] == "cannot save"
