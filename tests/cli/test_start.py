"""Before anything is computed: help, command lines, and machines without a compiler."""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import SKY, Cli, metrics

from tapegpt.commands import bench
from tapegpt.settings import ModelConfig, TrainConfig


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
