"""The command line, mostly as its users meet it: in a process of its own."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from command_line import GOLDEN, SKY, Cli, metrics, posix, saved, untimed

from tapegpt.checkpoint import load, state_names
from tapegpt.commands import bench, train
from tapegpt.corpus import default_corpus, read_documents
from tapegpt.presets import configure, default_learning_rate
from tapegpt.settings import DTYPES, GRANULARITIES, ModelConfig, TrainConfig
from tapegpt.train import run_folder, stopping
from tapegpt.train.signals import stop_signals
from tapegpt.train.trainer import Trainer

SAVED_RUNS = Path(__file__).parent / "saved_runs"
COMPILING = "compiling kernels"


@pytest.fixture(scope="module")
def warm(kernel_cache, tmp_path_factory):
    """The kernel cache, filled by `warmup`; what that said."""
    result = Cli(tmp_path_factory.mktemp("warmup"), kernel_cache)("warmup")
    return result.stdout, result.stderr


@pytest.fixture
def tapegpt(tmp_path, warm, kernel_cache):
    return Cli(tmp_path, kernel_cache)


@pytest.fixture(scope="module")
def trained(warm, kernel_cache, tmp_path_factory):
    """A folder in which `train` has run without arguments, and what that said."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, Cli(folder, kernel_cache)("train")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained[0] / "out", tmp_path / "run")


# Starting


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *[([command, "--help"], 0) for command in ("train", "sample", "bench", "warmup")],
        ([], 2),
        (["tarin"], 2),
        (["train", "--step", "5"], 2),
        (["train", "--out=~nobody-of-this-name/x"], 2),
        (["sample", "--prompt"], 2),
        (["train", "--steps", "0"], 2),
        (["train", "--steps", "many"], 2),
        (["train", "--n-embd", "10"], 2),
        (["train", "--preset", "nanogpt"], 2),
        (["train", "--optimizer", "adan"], 2),
        (["train", "--steps", "3", "--seconds", "3"], 2),
        (["train", "--patience", "3"], 2),
        (["train", "--data", "missing.txt"], 1),
        (["train", "--resume", "--out", "missing"], 1),
        (["sample", "--temperature", "-1"], 2),
        (["sample", "--run", "missing"], 1),
        (["bench", "--n-embd", "16", "0"], 2),
    ],
    ids=str,
)
def test_help_and_refusals_do_not_import_numba(tmp_path, arguments, code):
    result = Cli(tmp_path, tmp_path)(
        *arguments, code=code, python=("-X", "importtime", "-m", "tapegpt")
    )
    imported = re.findall(r"\| +(\S+)$", result.stderr, re.M)
    assert "tapegpt.cli" in imported
    assert not {"numba", "llvmlite"} & set(imported)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "sample", "bench", "warmup"])
def test_without_a_compiler_nothing_is_done(tmp_path, trained, command):
    arguments = ["--run", trained[0] / "out"] if command == "sample" else []
    off = {"NUMBA_DISABLE_JIT": "1"}
    result = Cli(tmp_path, tmp_path)(command, *arguments, environment=off, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("tapegpt: error: NUMBA_DISABLE_JIT is set, but vectors")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUMBA_OPT", "nonsense"),
        ("NUMBA_BOUNDSCHECK", "yes"),
        ("NUMBA_DISABLE_JIT", "no"),
        ("NUMBA_CPU_NAME", "nonsense"),
        ("NUMBA_CPU_FEATURES", "+nonsense"),
    ],
)
def test_variables_that_numba_cannot_use(tmp_path, name, value):
    result = Cli(tmp_path, tmp_path)("bench", environment={name: value}, code=1)
    assert re.fullmatch(f"tapegpt: error: .*{name}.*unset.*\n", result.stderr)
    assert value in result.stderr


def test_a_tape_without_a_compiler(tmp_path):
    process = Cli(tmp_path).start(
        python=("-c", "import tapegpt; tapegpt.Tape()"), environment={"NUMBA_DISABLE_JIT": "1"}
    )
    _, err = process.communicate()
    assert process.returncode == 1
    assert re.search(r"^tapegpt\.errors\.TapegptError: NUMBA_DISABLE_JIT is set.*\n\Z", err, re.M)


def test_help_names_every_flag(call):
    out, _ = call("train", "--help")
    names = [*fields(ModelConfig), *fields(TrainConfig)]
    for name in (
        *("data", "preset", "out", "resume", "metrics", "quiet"),
        *(f.name for f in names),
    ):
        assert re.search(rf"^  --{name.replace('_', '-')}\b", out, re.M)
    rates = "0.01 for adam, 0.01 for adamw, (1 - momentum) 0.1 / 0.5 / 0.3 for sgd"
    assert f"default {rates} (gpt / rnn / rnn-att)" in " ".join(out.split())
    out, _ = call("sample", "--help")
    for name in ("run", "temperature", "num-samples", "top-k", "top-p", "prompt", "seed"):
        assert re.search(rf"^  --{name}\b", out, re.M)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown command 'trian' (did you mean train?): see tapegpt --help"),
        (["--quiet"], "unknown flag '--quiet': see tapegpt --help"),
        ([], "name a command: train or sample or bench or warmup"),
        (["train", "--step", "5"], "unknown flag '--step' (did you mean --steps?): see tapegpt tr"),
        (["train", "--n-emb=5"], "unknown flag '--n-emb' (did you mean --n-embd?)"),
        (["train", "--n_embd=5"], "unknown flag '--n_embd' (did you mean --n-embd?)"),
        (["sample", "--temprature", "1"], "(did you mean --temperature?)"),
        (["train", "names.txt"], "unknown argument 'names.txt'"),
        (["train", "--steps"], "--steps wants a value: see"),
        (["train", "--out", "--resume"], "if '--resume' is meant, write --out=--resume"),
        (["train", "--metrics", "-m"], "if '-m' is meant, write --metrics=-m"),
        (["train", "--steps", "--"], "--steps '--' is not a whole number"),
        (["train", "--seconds", "-1e5"], "--seconds -100000.0 is out of range"),
        (["sample", "--prompt", "--seed"], "if '--seed' is meant, write --prompt=--seed"),
        (["sample", "--run", "~nobody-of-this-name"], "write ./~nobody-of-this-name if"),
    ],
    ids=str,
)
def test_mistyped_arguments(refused, arguments, said):
    refused(*arguments, names=said)


@pytest.mark.parametrize("spelled", [("{}", "{}"), ("{}={}",)])
def test_paths_in_the_home_folder(call, monkeypatch, tmp_path, spelled):
    """The shell leaves ~ alone after =."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))  # where Windows looks
    (tmp_path / "home").mkdir()
    shutil.copy(SKY, tmp_path / "home" / "names.txt")

    def at(flag, path):
        return " ".join(spelled).format(flag, path).split(" ")

    call(
        *("train", "--steps", "2", *at("--data", "~/names.txt")),
        *(*at("--out", "~/out"), *at("--metrics", "~/m.jsonl")),
    )
    assert len(metrics(tmp_path / "home" / "m.jsonl")) == 2
    assert call("sample", *at("--run", "~/out"), "--num-samples", "1")[0]
    monkeypatch.setattr(bench, "LADDER", ())
    call("bench", *at("--json", "~/b.json"))
    assert (tmp_path / "home" / "b.json").exists()
    assert not list(Path().iterdir())


def test_prompts_that_begin_with_a_dash(call):
    Path("dashes").write_text("-a-b\n--x\n-1\n--\n" * 9)
    call("train", "--data", "dashes", "--steps", "20")
    for prompt in ("-a", "--", "--x", "-1", "-"):
        for spelled in (["--prompt", prompt], [f"--prompt={prompt}"]):
            out, _ = call("sample", *spelled, "--num-samples", "2")
            assert [text[: len(prompt)] for text in out.splitlines()] == [prompt] * 2


# Warming up


def test_warmup_says_that_it_compiles(warm, tapegpt):
    assert warm == ("", f"tapegpt: {COMPILING} that the cache does not have yet\n")
    assert tapegpt("warmup").stderr == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_warmup_compiles_what_training_and_sampling_use(tapegpt, granularity, dtype):
    sizes = ["--n-embd", "24", "--n-head", "3", "--n-layer", "2", "--block-size", "9"]
    kind = ["--granularity", granularity, "--dtype", dtype, "--batch-size", "5"]
    result = tapegpt("train", "--steps", "3", "--val-fraction", "0.1", *sizes, *kind)
    assert COMPILING not in result.stderr
    if granularity == "vector":
        assert COMPILING not in tapegpt("sample", "--num-samples", "3").stderr
        added = ["--ensemble", "2", "--look-back", "2", "--dropout", "0.25", "--weighting", "token"]
        assert COMPILING not in tapegpt("train", "--steps", "3", *sizes, *kind, *added).stderr
        threads = ["--threads", "2", "--clip-norm", "1", "--averaging", "0.1", "--optimizer", "sgd"]
        assert COMPILING not in tapegpt("train", "--steps", "3", *sizes, *kind, *threads).stderr
    sparse = ["--model", "rnn-att", "--n-state", "20", "--n-att", "3"]
    assert COMPILING not in tapegpt("train", "--steps", "3", *sparse, *kind).stderr


# Training


def test_train_defaults(trained):
    folder, result = trained
    samples = result.stdout.split("\n")
    assert samples.pop() == ""
    assert len(samples) == 20
    assert all(re.fullmatch("[a-z]{0,16}", sample) for sample in samples)
    assert {path.name for path in folder.iterdir()} == {"out"}
    assert sorted(saved(folder / "out"))[0] == "run.json"
    assert len(saved(folder / "out")) == 2
    settings = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert settings["model"] == {
        "model": "gpt", "n_layer": 1, "n_embd": 16, "n_head": 4, "block_size": 16,
        "n_state": 32, "n_att": 16, "look_back": 0, "ensemble": 1, "dropout": 0.0,
    }  # fmt: skip
    assert settings["step"] == settings["training"]["steps"] == 1000
    assert settings["documents"] == len(read_documents(default_corpus()))


def test_progress_is_plain_lines_where_there_is_no_terminal(trained):
    lines = trained[1].stderr.splitlines()
    assert re.fullmatch(
        r"tapegpt: \d+ documents, 26 characters, 4192 parameters, vector float32", lines[0]
    )
    assert lines[-1] == "tapegpt: saved in out"
    steps = [
        re.fullmatch(r"step (\d+)/1000 loss \d\.\d{4} \d+ steps/s, \d+ s left", line)
        for line in lines[1:-1]
    ]
    assert all(steps)
    numbers = [int(step[1]) for step in steps]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1
    assert numbers[-1] == 1000
    assert len(numbers) <= 12
    assert "\r" not in trained[1].stderr


@posix
def test_progress_is_a_bar_on_a_terminal(tapegpt):
    import termios

    terminal, other_end = os.openpty()
    termios.tcsetwinsize(other_end, (24, 100))
    process = tapegpt.start("train", "--steps", "2000", "--data", SKY, stderr=other_end)
    os.close(other_end)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(terminal)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert len(out.splitlines()) == 20
    text = shown.decode()
    assert re.search(r"100%\|.*\| 2000/2000 \[.*step/s, loss \d\.\d{4}\]", text)
    assert "step 1/" not in text


def test_quiet(tapegpt, trained):
    result = tapegpt("train", "--quiet")
    assert result.stderr == ""
    assert result.stdout == trained[1].stdout
    assert saved(tapegpt.folder / "out") == saved(trained[0] / "out")


def test_metrics(call, tmp_path):
    path = tmp_path / "losses.jsonl"
    call("train", "--steps", "30", "--data", SKY, "--batch-size", "3", "--metrics", path)
    trainer = Trainer(ModelConfig(), TrainConfig(steps=30, batch_size=3), read_documents(SKY))
    expected = trainer.advance(30).tolist()
    lines = metrics(path)
    times = [line.pop("seconds") for line in lines if "seconds" in line]
    assert lines == [{"step": step, "loss": loss} for step, loss in enumerate(expected, 1)]
    assert times == sorted(times) and 0 < times[0] < times[-1] < 60
    call("train", "--steps", "2", "--data", SKY, "--metrics", path)
    assert len(metrics(path)) == 2


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sky_microgpt", {"--steps": 200}),
        (
            "sky_microgpt_l2",
            {
                "--n-layer": 2,
                "--n-embd": 12,
                "--n-head": 3,
                "--block-size": 12,
                "--seed": 1,
                "--steps": 40,
            },
        ),
    ],
)
def test_golden(tapegpt, name, flags):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    result = tapegpt(
        *("train", "--preset", "microgpt", "--granularity", "scalar", "--dtype", "float64"),
        *("--data", SKY, "--metrics", "losses.jsonl", *sum(flags.items(), ())),
    )
    losses = [line["loss"] for line in metrics(tapegpt.folder / "losses.jsonl")]
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=1e-9)
    assert result.stdout.splitlines() == expected["samples"]


# Resuming


def interrupted(tapegpt, number, *arguments):
    """Start training, send a signal once it is on its way; what it said in the end."""
    process = tapegpt.start("train", *arguments)
    told = ""
    while not re.search(r"^step \d", told, re.M):
        line = process.stderr.readline()
        assert line, told
        told += line
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number, told + err
    assert "Traceback" not in err
    assert out == ""
    return err


@posix
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(tapegpt):
    # Some seconds of training, so that signals meet it on its way.
    flags = ["--data", SKY, "--steps", 4000, "--batch-size", 64, "--n-embd", 8, "--seed", 3]
    whole = tapegpt("train", *flags, "--out", "whole", "--metrics", "whole.jsonl")
    flags = ["--out", "parts", "--metrics", "parts.jsonl", *flags]
    first = interrupted(tapegpt, signal.SIGINT, *flags)
    stopped = r"stopped after step (\d+) of 4000; saved in parts: go on with --resume\n"
    step = int(re.search(stopped, first)[1])
    assert len(metrics(tapegpt.folder / "parts.jsonl")) == step
    second = interrupted(tapegpt, signal.SIGTERM, "--resume", *flags)
    assert step < int(re.search(stopped, second)[1]) < 4000
    rest = tapegpt("train", "--resume", *flags)
    assert rest.stdout == whole.stdout
    assert saved(tapegpt.folder / "parts") == saved(tapegpt.folder / "whole")
    parts, whole = (metrics(tapegpt.folder / f"{name}.jsonl") for name in ("parts", "whole"))
    assert [untimed(line) for line in parts] == [untimed(line) for line in whole]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_kills(number):
    before = signal.getsignal(number)
    with stop_signals() as received:
        os.kill(os.getpid(), number)
        assert received == [number]
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


@posix
def test_a_signal_before_the_first_step(call, monkeypatch):
    """While kernels compile, for instance."""

    def compiling(trainer, count):
        assert count == 0
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "advance", compiling)
    _, err = call("train", "--data", SKY, code=143)
    assert "stopped after step 0 of 1000; saved in out: go on with --resume" in err
    assert Path("out/run.json").exists()


@posix
def test_a_signal_after_the_last_step(call, monkeypatch):
    def late(run, folder):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_folder, "save", late)
    _, err = call("train", "--data", SKY, "--steps", "3", code=130)
    assert err.endswith("stopped after step 3 of 3; saved in out\n")


def test_resume_with_more_steps(call):
    flags = ["--data", SKY, "--batch-size", "2", "--metrics", "m.jsonl"]
    call("train", "--steps", "10", *flags)
    before = metrics(Path("m.jsonl"))
    _, err = call("train", "--resume", "--steps", "15", *flags)
    assert "step 11/15 " in err
    after = metrics(Path("m.jsonl"))
    assert after[:10] == before
    assert [line["step"] for line in after] == list(range(1, 16))
    # The rate is that of a run of 15 steps from step 11 on.
    trainer = Trainer(ModelConfig(), TrainConfig(batch_size=2, steps=10), read_documents(SKY))
    trainer.advance(10)
    trainer.training = TrainConfig(batch_size=2, steps=15)
    assert [line["loss"] for line in after[10:]] == trainer.advance(5).tolist()


def test_resuming_writes_no_metrics_twice(call):
    """After a kill there may be lines of steps that were not saved, and half of one."""
    flags = ["--data", SKY, "--metrics", "m.jsonl"]
    call("train", "--steps", "10", *flags)
    path = Path("m.jsonl")
    ours = b'a note\n[1]\n{"step": "x"}\n' + b"[" * 10**5 + b"\n"
    before = path.read_bytes()
    call("train", "--resume", "--steps", "12", *flags)
    whole = path.read_bytes()
    assert whole.startswith(before) and before.count(b"\n") == 10
    assert [line["step"] for line in metrics(path)] == list(range(1, 13))
    for rest in (b'{"step": 11, "loss": 3.0}\n{"step": 12, "lo', b'{"ste', b"\n\xff\0"):
        path.unlink()
        call("train", "--steps", "10", *flags)
        path.write_bytes(ours + before + rest)
        call("train", "--resume", "--steps", "12", *flags)
        lines = path.read_bytes().removeprefix(ours).splitlines()
        assert [untimed(json.loads(line)) for line in lines if line.startswith(b"{")] == [
            untimed(json.loads(line)) for line in whole.splitlines()
        ]


def test_resume_refusals(call, refused):
    kept = ["--data", SKY, "--n-embd", "8", "--learning-rate", "0.02"]
    call("train", "--steps", "3", *kept)
    resume = ["train", "--resume", "--steps", "5"]
    before = saved(Path("out"))
    refused(*resume, code=1, names=["another corpus", "--data"])
    refused(*resume, *kept, "--n-embd", "16", names="--n-embd 16 differs from 8")
    refused(*resume, *kept, "--learning-rate", "nan", names="--learning-rate nan")
    refused(*resume, *kept, "--dtype", "float64", names="--dtype float64")
    refused(*resume, *kept, "--preset", "microgpt", names="--preset microgpt")
    refused(*resume, *kept, "--momentum", "0.9", names="--momentum 0.9 is for --optimizer sgd")
    refused(*resume, *kept, "--steps", "0", names="--steps 0")
    refused("train", "--resume", *kept, names=["spent its --steps 3", "--steps above 3"])
    refused(*resume, *kept, "--steps", "3", names="--steps above 3")
    refused(*resume, *kept, "--out", "missing", code=1, names="'missing/run.json'")
    assert saved(Path("out")) == before
    call(*resume, *kept)


@pytest.mark.parametrize(
    ("name", "flags", "texts"),
    [
        ("gpt", ["--steps", "700"], ["cala", "cana"]),
        ("rnn-att", ["--seconds", "0.05"], ["cas", "cas"]),
    ],
)
def test_a_run_of_the_first_release(call, name, flags, texts):
    """It was saved before any later setting was known."""
    shutil.copytree(SAVED_RUNS / name, name)
    for last, text in zip([[], ["--last"]], texts, strict=True):  # the best one, where there is
        sample = ["sample", "--run", name, "--temperature", "0", "--num-samples", "1"]
        assert call(*sample, "--prompt", "c", *last)[0].startswith(text)
    before = load(Path(name))
    call("train", "--resume", "--data", SKY, "--out", name, *flags)
    after = load(Path(name))
    assert before.step in (600, 9501) and after.step > before.step
    assert after.model == before.model


def test_a_damaged_run_is_not_resumed(call, refused):
    call("train", "--steps", "3", "--data", SKY)
    path = Path("out/run.json")
    path.write_text(path.read_text().replace('"step": 3', '"step": 2'))
    refused("train", "--resume", "--data", SKY, code=1, names="'out/run.json' is damaged")


# Optimizers, schedules and budgets


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer", "adamw", "--weight-decay", "0.1", "--schedule", "cosine"],
        ["--optimizer", "sgd", "--momentum", "0.95", "--schedule", "exponential"],
        ["--ensemble", "2", "--look-back", "3", "--averaging", "0.1", "--weighting", "token"],
        ["--optimizer", "sgd", "--clip-norm", "0.5", "--schedule", "constant"],
    ],
    ids=lambda flags: flags[1],
)
def test_flags_are_the_settings_of_the_run(call, granularity, flags):
    kind = ["--steps", "20", "--data", SKY, "--granularity", granularity, *flags]
    call("train", *kind, "--metrics", "m.jsonl")
    settings = {
        name[2:].replace("-", "_"): value if value.isalpha() else json.loads(value)
        for name, value in zip(flags[::2], flags[1::2], strict=True)
    }
    model, training = configure(None, {"steps": 20, "granularity": granularity, **settings})
    expected = Trainer(model, training, read_documents(SKY)).advance(20)
    assert [line["loss"] for line in metrics(Path("m.jsonl"))] == expected.tolist()
    run = load(Path("out"))
    assert set(run.optimizer) == set(state_names(training))
    assert run.training.learning_rate == default_learning_rate(ModelConfig(), training)


@pytest.mark.parametrize("flags", [[], ["--granularity", "dot", "--val-fraction", "0.3"]])
def test_training_for_some_seconds(call, flags):
    call("train", "--seconds", "0.5", "--data", SKY, "--metrics", "m.jsonl", *flags)
    lines = metrics(Path("m.jsonl"))
    times = [line["seconds"] for line in lines if "seconds" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(times) > 3
    assert times[-2] < 0.5 <= times[-1]
    run = load(Path("out"))
    assert (run.training.seconds, run.training.steps) == (0.5, None)
    assert (run.step, run.elapsed) == (len(lines), times[-1])
    if flags:
        evaluated = [line for line in lines if "val_loss" in line]
        assert 2 <= len(evaluated) <= 11
        assert evaluated[-1] == lines[-1]


def test_more_seconds_for_a_run(call, refused):
    flags = ["--data", SKY, "--metrics", "m.jsonl"]
    call("train", "--seconds", "0.2", *flags)
    done = load(Path("out"))
    refused("train", "--resume", *flags, names=["spent its --seconds 0.2", "--seconds above 0.2"])
    _, err = call("train", "--resume", "--seconds", "0.4", *flags)
    assert re.search(rf"^step {done.step + 1} loss .* steps/s, 0 s left$", err, re.M)
    run = load(Path("out"))
    assert run.step > done.step
    assert run.elapsed >= 0.4
    lines = metrics(Path("m.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, run.step + 1))
    assert lines[done.step]["seconds"] > done.elapsed
    _, err = call("train", "--resume", "--steps", run.step + 3, *flags)
    assert f"step {run.step + 3}/{run.step + 3} " in err
    assert load(Path("out")).training.seconds is None


def test_evaluations_take_none_of_the_seconds(call, monkeypatch):
    """A clock that only training and evaluations move."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "perf_counter", lambda: now[0])
    advance, evaluate = Trainer.advance, Trainer.evaluate
    paces = []

    def slow_advance(trainer, count, pace=0.0):
        paces.append(pace)
        now[0] += 0.125 * count
        return advance(trainer, count, pace)

    def slow_evaluate(trainer):
        now[0] += 1000
        return evaluate(trainer)

    monkeypatch.setattr(Trainer, "advance", slow_advance)
    monkeypatch.setattr(Trainer, "evaluate", slow_evaluate)
    call("train", "--seconds", "5", "--val-fraction", "0.2", "--data", SKY, "--metrics", "m.jsonl")
    run, lines = load(Path("out")), metrics(Path("m.jsonl"))
    assert (run.step, run.elapsed) == (40, 5)
    evaluated = [line["seconds"] for line in lines if "val_loss" in line]
    assert evaluated == [0.5 * i for i in range(1, 11)]
    assert paces[2:] == [0.125] * (len(paces) - 2)


@pytest.mark.parametrize("seconds_a_step", [1e-5, 0.01, 0.3, 7.0])
def test_a_signal_is_heard_within_half_a_second(call, monkeypatch, seconds_a_step):
    """Or after the step, where one takes longer: Python hears it between calls of the kernel."""
    now, calls = [100.0], []

    def advance(trainer, count, pace=0.0):
        now[0] += count * seconds_a_step
        trainer.step += count
        calls.append(count)
        return np.ones(count)

    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: now[0])
    monkeypatch.setattr(Trainer, "advance", advance)
    steps = min(10**7, int(300 / seconds_a_step))
    call("train", "--data", SKY, "--steps", steps)
    assert sum(calls) == steps
    assert max(calls) <= max(1, 0.5 / seconds_a_step)


# Held-out documents

HOLD_OUT = ["--data", SKY, "--val-fraction", "0.2", "--metrics", "m.jsonl"]


def evaluated(path=Path("m.jsonl")):
    """{step: val_loss}"""
    return {line["step"]: line["val_loss"] for line in metrics(path) if "val_loss" in line}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_held_out_documents(call, granularity):
    kind = ["--granularity", granularity, "--steps", "25", "--eval-every", "10"]
    _, err = call("train", *HOLD_OUT, *kind, "--test-fraction", "0.1")
    training = TrainConfig(granularity=granularity, steps=25, val_fraction=0.2, test_fraction=0.1)
    trainer = Trainer(ModelConfig(), training, read_documents(SKY))
    losses, expected = [], {}
    for count in (10, 10, 5):
        losses += trainer.advance(count).tolist()
        expected[trainer.step] = trainer.evaluate()
    assert [line["loss"] for line in metrics(Path("m.jsonl"))] == losses
    assert evaluated() == expected
    last, best = load(Path("out")), load(Path("out/best"))
    assert (last.step, last.best_loss) == (25, min(expected.values()))
    assert expected[best.step] == best.best_loss == last.best_loss
    assert best.stale == 0
    test_loss = trainer.test(best.weights)
    assert metrics(Path("m.jsonl"))[-1]["test_loss"] == test_loss
    assert f"test_loss {test_loss:.4f}\n" in err
    assert f"least val_loss {last.best_loss:.4f}, saved in out/best\n" in err
    assert f"val_loss {expected[25]:.4f} " in err
    assert len(call("sample", "--run", "out/best", "--num-samples", "3")[0].splitlines()) == 3


def test_ten_evaluations_unless_told_otherwise(call):
    call("train", *HOLD_OUT, "--steps", "50")
    assert list(evaluated()) == list(range(5, 51, 5))
    call("train", *HOLD_OUT, "--steps", "400", "--batch-size", "5")
    documents = len(read_documents(SKY))
    a_pass = -(-(documents - round(0.2 * documents)) // 5)
    assert list(evaluated())[:2] == [a_pass, 2 * a_pass]
    call("train", *HOLD_OUT, "--steps", "7")
    assert list(evaluated()) == list(range(1, 8))


def fake_evaluations(monkeypatch, losses):
    results = iter(losses)
    monkeypatch.setattr(Trainer, "_loss_per_token", lambda *arguments: next(results))


def test_the_best_is_kept_beside_the_last(call, monkeypatch):
    fake_evaluations(monkeypatch, [math.nan, 3.0, 2.0, 2.5, math.nan])
    call("train", *HOLD_OUT, "--steps", "10", "--eval-every", "2")
    assert evaluated() == {2: None, 4: 3.0, 6: 2.0, 8: 2.5, 10: None}
    last, best = load(Path("out")), load(Path("out/best"))
    assert (last.step, last.best_loss, last.stale) == (10, 2.0, 2)
    assert (best.step, best.best_loss, best.stale) == (6, 2.0, 0)


def test_early_stopping(call, monkeypatch, refused):
    flags = [*HOLD_OUT, "--steps", "30", "--eval-every", "3"]
    fake_evaluations(monkeypatch, [3.0, 2.0, math.nan, 2.0, 1.0, 1.5, 1.5, 0.5, 0.6, 0.7])
    out, err = call("train", *flags, "--patience", "2")
    assert len(out.splitlines()) == 20
    assert "2 evaluations without improvement: stopped early\n" in err
    assert load(Path("out")).step == 12
    assert load(Path("out/best")).step == 6
    refused("train", "--resume", *flags, names=["spent its --patience 2", "--patience above 2"])
    call("train", "--resume", *flags, "--patience", "3")
    assert load(Path("out")).step == 30
    assert load(Path("out/best")).step == 24
    assert list(evaluated()) == list(range(3, 31, 3))


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_new_run_leaves_no_best_one_of_the_old(call, flags):
    call("train", *HOLD_OUT, "--steps", "2")
    assert Path("out/best/run.json").exists()
    call("train", "--data", SKY, "--steps", "2", *flags)
    assert not Path("out/best").exists()


@posix
def test_interrupted_and_resumed_with_held_out_documents(tapegpt):
    flags = ["--data", SKY, "--steps", 4000, "--batch-size", 32, "--n-embd", 8]
    flags += ["--val-fraction", 0.3, "--eval-every", 90, "--optimizer", "sgd"]
    tapegpt("train", *flags, "--out", "whole", "--metrics", "whole.jsonl")
    flags = ["--out", "parts", "--metrics", "parts.jsonl", *flags]
    interrupted(tapegpt, signal.SIGINT, *flags)
    tapegpt("train", "--resume", *flags)
    for folder in ("", "best"):
        parts, whole = (tapegpt.folder / name / folder for name in ("parts", "whole"))
        assert saved(parts) == saved(whole)
    parts, whole = (metrics(tapegpt.folder / f"{name}.jsonl") for name in ("parts", "whole"))
    assert [untimed(line) for line in parts] == [untimed(line) for line in whole]


# Settings that cannot be right

HOSTILE = ["", "x", "0x10", "nan", "inf", "-inf", "1e400", "-1", "9" * 5000]
WHOLE = [*HOSTILE, "0", "1.5", "9" * 30, "1e3"]


@pytest.mark.parametrize(
    "flag",
    [
        *("--n-layer", "--n-embd", "--n-head", "--block-size", "--n-state", "--n-att"),
        *("--steps", "--batch-size"),
    ],
)
@pytest.mark.parametrize("value", WHOLE, ids=lambda value: value[:10])
def test_hostile_sizes(refused, flag, value):
    refused("train", "--metrics", "m.jsonl", f"{flag}={value}", names=flag)


@pytest.mark.parametrize("value", set(WHOLE) - {"0"}, ids=lambda value: value[:10])
def test_hostile_seeds(refused, run, value):
    refused("train", f"--seed={value}", names="--seed")
    refused("sample", "--run", run, f"--seed={value}", names="--seed")


@pytest.mark.parametrize("value", [*HOSTILE, "0", "-0.0", "1e-400"], ids=lambda value: value[:10])
def test_hostile_learning_rates(refused, value):
    refused("train", f"--learning-rate={value}", names="--learning-rate")


@pytest.mark.parametrize("flag", ["--seconds", "--clip-norm", "--decay"])
@pytest.mark.parametrize("value", [*HOSTILE, "0"], ids=lambda value: value[:10])
def test_hostile_numbers_above_zero(refused, flag, value):
    refused("train", f"{flag}={value}", "--schedule", "exponential", names=flag)


@pytest.mark.parametrize(
    "flag",
    ["--momentum", "--warmup", "--val-fraction", "--test-fraction", "--averaging", "--dropout"],
)
@pytest.mark.parametrize("value", [*HOSTILE, "1"], ids=lambda value: value[:10])
def test_hostile_numbers_below_one(refused, flag, value):
    kind = ["--optimizer", "sgd", "--schedule", "cosine"]
    refused("train", f"{flag}={value}", *kind, names=flag)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:10])
def test_hostile_weight_decays(refused, value):
    refused("train", f"--weight-decay={value}", "--optimizer", "adamw", names="--weight-decay")


@pytest.mark.parametrize("flag", ["--eval-every", "--patience"])
@pytest.mark.parametrize("value", WHOLE, ids=lambda value: value[:10])
def test_hostile_counts_of_evaluations(refused, flag, value):
    refused("train", f"{flag}={value}", "--val-fraction", "0.1", names=flag)


@pytest.mark.parametrize(
    "flags",
    [
        ["--momentum", "0.9"],
        ["--weight-decay", "0.1", "--optimizer", "sgd"],
        ["--decay", "0.9"],
        ["--warmup", "0.1", "--schedule", "constant"],
        ["--eval-every", "10"],
        ["--patience", "3", "--val-fraction", "0"],
        ["--seconds", "3", "--steps", "4"],
        ["--dropout", "0.1", "--granularity", "dot"],
        ["--look-back", "2", "--model", "rnn"],
        ["--ensemble", "2", "--model", "rnn-att"],
        ["--look-back", "16"],
        ["--val-fraction", "0.5", "--test-fraction", "0.5"],
    ],
)
def test_flags_that_do_not_go_together(refused, flags):
    refused("train", *flags, names=flags[0])


def test_too_few_documents_to_hold_any_out(refused):
    Path("one.txt").write_text("abc")
    flags = ["--data", "one.txt", "--val-fraction", "0.1"]
    refused("train", *flags, names=["--val-fraction 0.1", "none of 1 documents"])


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: value[:10])
def test_hostile_numbers_of_samples(refused, run, value):
    refused("sample", "--run", run, f"--num-samples={value}", names="--num-samples")
    refused("sample", "--run", run, f"--top-k={value}", names="--top-k")


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:10])
def test_hostile_shares(refused, run, value):
    refused("sample", "--run", run, f"--temperature={value}", names="--temperature")
    for hostile in (value, "0", "1.1"):
        refused("sample", "--run", run, f"--top-p={hostile}", names="--top-p")


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: value[:10])
def test_hostile_widths(refused, value):
    refused("bench", f"--n-embd={value}", "--json", "b.json", names="--n-embd")


@pytest.mark.parametrize(
    "flag", ["--model", "--granularity", "--optimizer", "--schedule", "--dtype", "--preset"]
)
@pytest.mark.parametrize("value", ["", "vectors", "a\nb"])
def test_hostile_choices(refused, flag, value):
    refused("train", f"{flag}={value}", names=flag)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("flag", ["--n-embd=1000000000", "--block-size=2147483647"])
def test_sizes_beyond_memory(refused, granularity, flag):
    flag_name = flag.split("=")[0]
    refused("train", "--metrics", "m.jsonl", "--granularity", granularity, flag, names=flag_name)


def test_divergence(call):
    call("train", "--steps", "3", "--data", SKY)
    before = saved(Path("out"))
    out, err = call("train", "--data", SKY, "--learning-rate", "1e30", code=3)
    assert out == ""
    assert re.fullmatch(
        r"tapegpt: error: training diverged at step 2: the loss is not finite"
        r" \(loss (nan|inf), --learning-rate 1e\+30\): try a lower rate, or --clip-norm 1",
        err.splitlines()[-1],
    )
    assert saved(Path("out")) == before


def test_debug_shows_a_traceback_and_keeps_the_code(call):
    _, err = call("train", "--debug", "--steps", "0", code=2)
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("tapegpt: error: --steps 0 ")


# Text


def corpus(content):
    path = Path("corpus.txt")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n \r\n\t\n", "only blank lines"),
        (b"\xef\xbb\xbf", "only blank lines"),
        (b"abc\nd\xffe\n", "is not UTF-8 at byte 5 (0xff) on line 2"),
        (b"abc\0", "has a NUL at byte 3"),
        (b"a\xed\xa0\x80", "is not UTF-8"),
        (b"\n" * 1_000_000, "only blank lines"),
    ],
    ids=str,
)
def test_text_that_cannot_be_used(refused, content, problem):
    refused("train", "--data", corpus(content), code=1, names=["'corpus.txt'", problem])


def test_files_that_cannot_be_used(refused):
    refused("train", "--data", "missing.txt", code=1, names="'missing.txt' cannot be read")
    refused("train", "--data", ".", code=1, names="'.' is a directory")


@pytest.mark.parametrize(
    ("content", "alphabet"),
    [
        (b"aaa\na\n", "a"),
        (b"\xef\xbb\xbfab\r\nba\r\n\r\n", "ab"),
        (b"ab" * 5_000_000 + b"\nba\n", "ab"),
        (b"a document that is much longer than the block\nanother\n", None),
        ("\U0001f600\U0001f468\u200d\U0001f469\nq\u0301\u0627\u0644\u05d0\n".encode(), None),
        (b"ab\n" + b"\n" * 1_000_000 + b"ba\n", "ab"),
        (b"'\"\\{}%s\n", None),
    ],
    ids=["one character", "BOM and CRLF", "10 MB line", "long", "emoji", "blank lines", "quotes"],
)
def test_text_that_trains(call, content, alphabet):
    out, _ = call("train", "--steps", "3", "--data", corpus(content))
    samples = out.split("\n")[:-1]
    assert len(samples) == 20
    assert max(map(len, samples)) <= 16
    assert set("".join(samples)) <= set(alphabet or content.decode())
    text, _ = call("sample", "--num-samples", "2", "--prompt", content.decode("utf-8-sig")[0])
    assert text


def test_prompts_are_spelled_as_the_corpus_is_read(call):
    corpus("zoe\u0308\nzo\u00eb\nq\u0308\n".encode() * 9)
    call("train", "--steps", "20", "--data", "corpus.txt")
    for prompt in ("zo\u00eb", "zoe\u0308"):
        out, _ = call("sample", "--num-samples", "2", "--prompt", prompt)
        assert [text[:3] for text in out.splitlines()] == ["zo\u00eb"] * 2


def test_remarks_on_the_corpus(call):
    """Few characters that are never seen are no warning."""
    flags = ["train", "--steps", "2", "--data", corpus(b"a" * 50 + b"\nb\nb\nb\nb\n")]
    held_out = [*flags, "--val-fraction", "0.5"]
    for quiet in ([], ["--quiet"]):
        _, err = call(*flags, *quiet)
        assert "tapegpt: --block-size 16 cuts 1 of 5 documents: 34 of 54 characters" in err
        assert "held-out documents are in the training part as well" in call(*held_out, *quiet)[1]
    few = ["train", "--steps", "2", "--data", SKY]
    assert "--block-size 16 cuts 1 of" in call(*few)[1]
    assert call(*few, "--quiet")[1] == ""


def test_a_run_from_before_characters_were_composed_goes_on(call, monkeypatch):
    path = corpus("\ufeffzoe\u0308\n\ufeffann\n".encode() * 9)
    with monkeypatch.context() as patch:
        patch.setattr(train, "read_documents", lambda path: read_documents(path, as_written=True))
        call("train", "--steps", "3", "--data", path)
    assert "\u0308" in load(Path("out")).characters
    call("train", "--resume", "--steps", "5", "--data", path)
    assert load(Path("out")).step == 5


def test_more_threads_than_processors_are_said(call, monkeypatch):
    flags = ["train", "--steps", "2", "--data", SKY, "--batch-size", "4", "--quiet"]
    monkeypatch.setattr(train, "processors", lambda: 2)
    assert call(*flags, "--threads", "2")[1] == ""
    _, err = call(*flags, "--threads", "3")
    assert err == "tapegpt: --threads 3 is more than there are processors: --threads 2 is as fast\n"


# Writing


@pytest.mark.parametrize("out", ["file/out", "file", "/proc"])
def test_where_no_run_can_be_saved(refused, out):
    """Said before training, not after it."""
    if out == "/proc" and not Path(out).is_dir():
        pytest.skip("no folder that even root cannot write in")
    Path("file").write_text("in the way")
    flags = ["--steps", str(2**53), "--out", out, "--metrics", "m.jsonl", "--quiet"]
    refused("train", *flags, code=1, names=f"--out '{out}'")


def test_where_no_metrics_can_be_written(call):
    Path("file").write_text("in the way")
    for path in ("file/m.jsonl", "."):
        _, err = call("train", "--steps", str(2**53), "--metrics", path, "--quiet", code=1)
        assert err.startswith(f"tapegpt: error: cannot write --metrics '{path}': ")
        assert err.count("\n") == 1
    assert not list(Path("out").iterdir())


@posix
def test_a_full_disk(tapegpt):
    flags = ["train", "--steps", "3", "--data", SKY, "--quiet"]
    result = tapegpt(*flags, "--metrics", "/dev/full", code=1)
    assert result.stderr.startswith("tapegpt: error: cannot write --metrics '/dev/full': No space")
    with open("/dev/full", "w") as full:
        result = tapegpt(*flags, code=1, stdout=full)
    assert result.stderr == "tapegpt: error: output: No space left on device\n"


@posix
def test_output_that_nobody_reads_on(tapegpt, trained):
    process = tapegpt.start("sample", "--run", trained[0] / "out", "--num-samples", "100000")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


@posix
@pytest.mark.parametrize("closed", ["1", "2"])
def test_output_that_is_closed(tapegpt, closed):
    command = f'exec "$@" {closed}>&-'
    flags = ["-m", "tapegpt", "train", "--steps", "3", "--data", str(SKY)]
    result = subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, *flags],
        cwd=tapegpt.folder,
        env=tapegpt.environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == (0 if closed == "1" else 20)
    assert ("saved in out" in result.stderr) == (closed == "1")


def test_a_terminal_that_cannot_show_the_text(tapegpt):
    (tapegpt.folder / "text").write_text("\u00e9\U0001f600\u0627\n" * 5, encoding="utf-8")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    result = tapegpt("train", "--data", "text", "--steps", "99", environment=ascii_only)
    assert result.stdout.isascii()
    assert r"\xe9\U0001f600\u0627" in result.stdout
    result = tapegpt("sample", "--prompt", "\u0628", code=1, environment=ascii_only)
    assert r"'\u0628' (U+0628)" in result.stderr


@posix
def test_a_terminal_is_sent_no_commands(tapegpt):
    """Text of a corpus, in samples of `train` and of `sample`; into a pipe it goes as it is."""
    text = "\x1b]0;a\x07\x9b2J\x7f\u202eb\u2066\tc\u05d0\u200d"
    (tapegpt.folder / "text").write_text((text + "\n") * 20, encoding="utf-8")
    sizes = ["--n-embd", "8", "--block-size", "24", "--learning-rate", "0.02", "--quiet"]
    train = ["train", "--data", "text", *sizes, "--steps", "300"]
    greedy = ["sample", "--temperature", "0", "--num-samples", "1"]
    assert text in tapegpt(*train).stdout
    assert tapegpt(*greedy).stdout == text + "\n"
    for arguments in ([*train, "--out", "again"], greedy):
        shown = on_a_terminal(tapegpt, *arguments)
        assert "\\x1b]0;a\\x07\\x9b2J\\x7f\\u202eb\\u2066\tc\u05d0\u200d\n" in shown
        assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", shown)


def on_a_terminal(tapegpt, *arguments):
    """What a command writes there, the returns that a terminal adds left out."""
    terminal, other_end = os.openpty()
    process = tapegpt.start(*arguments, stdout=other_end, stderr=other_end)
    os.close(other_end)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(terminal)
    assert process.wait() == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_messages_send_no_commands(call):
    """Names of files in what is logged, said of an error, or shown with --debug."""
    out, name = "a\x1b[2J\x9bb\u202e", r"a\x1b[2J\x9bb\u202e"
    _, err = call("train", "--data", SKY, "--steps", "2", "--out", out)
    assert f"saved in {name}" in err
    for debug in ([], ["--debug"]):
        _, err = call("sample", "--run", out + "/missing", *debug, code=1)
        assert f"{name}/missing" in err
        assert ("Traceback" in err) == bool(debug)
        assert re.sub("\n", "", err).isprintable()


# Sampling


@posix
def test_sampling_stops_at_a_signal(tapegpt, trained):
    process = tapegpt.start("sample", "--run", trained[0] / "out", "--num-samples", str(10**9))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")


def test_sample_uses_out(tapegpt, trained):
    shutil.copytree(trained[0] / "out", tapegpt.folder / "out")
    result = tapegpt("sample", "--temperature", "0.5")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 20
    assert tapegpt("sample").stdout == result.stdout


def test_greedy(call, run):
    sample = ["sample", "--run", run]
    greedy, _ = call(*sample, "--temperature", "0")
    assert len(set(greedy.splitlines())) == 1
    assert call(*sample, "--temperature", "0", "--seed", "7")[0] == greedy
    assert call(*sample, "--top-k", "1")[0] == greedy
    assert call(*sample, "--top-p", "1e-9")[0] == greedy


def test_prompt(call, run, refused):
    sample = ["sample", "--run", run, "--prompt"]
    assert all(text.startswith("ma") for text in call(*sample, "ma")[0].splitlines())
    assert all(len(text) <= 16 for text in call(*sample, "a" * 15)[0].splitlines())
    assert call(*sample, "") == call(*sample[:-1])
    refused(*sample, "mA", code=1, names="character 'A' (U+0041)")
    refused(*sample, "\U0001f600", code=1, names="U+1F600")
    refused(*sample, "a" * 16, names=["--prompt", "16 characters", "shorten it to 15"])


def test_seed(call, run):
    sample = ["sample", "--run", run]
    seven, _ = call(*sample, "--seed", "7")
    assert call(*sample, "--seed", "7")[0] == seven
    assert call(*sample, "--seed", "8")[0] != seven
    assert call(*sample, "--seed", "42") == call(*sample)
    assert call(*sample, "--seed", str(2**64 - 1))[0]


def test_many_samples_begin_with_the_few(call, run):
    sample = ["sample", "--run", run, "--num-samples"]
    many = call(*sample, "150")[0].splitlines()
    assert len(many) == 150
    for count in (1, 20, 64, 65):
        assert call(*sample, count)[0].splitlines() == many[:count]


def test_runs_that_cannot_be_read(refused, run):
    refused("sample", code=1, names=["'out/run.json'", "train"])
    (tensors,) = run.glob("*.safetensors")
    whole = tensors.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:-5] + b"x" + whole[-4:], b""):
        tensors.write_bytes(damaged)
        refused("sample", "--run", run, code=1, names=[tensors.name, "damaged"])
    tensors.unlink()
    refused("sample", "--run", run, code=1, names=tensors.name)
    (run / "run.json").write_text("{}")
    refused("sample", "--run", run, code=1, names="run.json")


# Measuring


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


def test_bench_where_no_figures_can_be_written(call, monkeypatch):
    monkeypatch.setattr(bench, "LADDER", ())
    _, err = call("bench", "--json", "missing/b.json", code=1)
    assert err.startswith("tapegpt: error: cannot write --json 'missing/b.json': No such file")
