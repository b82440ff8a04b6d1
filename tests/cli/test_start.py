"""Before anything is computed: help, command lines, and machines without a compiler."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import SKY, Cli, metrics, posix, saved

import tapegpt
from tapegpt.checkpoint import load
from tapegpt.commands import bench, registry
from tapegpt.commands.flags import given
from tapegpt.commands.registry import COMMANDS
from tapegpt.presets import PRESETS, configure
from tapegpt.runs.history import HISTORY
from tapegpt.settings import ModelConfig, TrainConfig


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *[([command, "--help"], 0) for command in COMMANDS],
        ([], 0),
        (["presets"], 0),
        (["info", "missing"], 1),
        (["eval", "missing"], 1),
        (["train", "--config", "missing.toml"], 1),
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


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_the_overview_imports_next_to_nothing(tmp_path, arguments):
    cli = Cli(tmp_path)
    cli.environment["PYTHONPATH"] = str(Path(tapegpt.__file__).parents[1])
    # Without site, which may import for itself what an installation needs.
    result = cli(*arguments, python=("-S", "-X", "importtime", "-m", "tapegpt"))
    imported = re.findall(r"\| +(\S+)$", result.stderr, re.M)
    assert {name for name in imported if name.startswith("tapegpt")} == {
        *("tapegpt", "tapegpt.cli", "tapegpt.commands", "tapegpt.commands.overview"),
        "tapegpt.errors",
    }
    assert not {"argparse", "typing", "logging", "pathlib", "dataclasses"} & set(imported)


LEAVING = """
import atexit, sys
atexit.register(print, "the interpreter is taken down")
from tapegpt.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(("arguments", "code"), [(["presets"], 0), (["info", "missing"], 1)])
def test_the_end_of_a_command_is_the_end_of_the_process(tmp_path, arguments, code):
    """And all that it has printed is there, also where that is more than a pipe holds."""
    result = Cli(tmp_path)(*arguments, python=("-c", LEAVING), code=code)
    usual = Cli(tmp_path)(*arguments, code=code)
    assert (result.stdout, result.stderr) == (usual.stdout, usual.stderr)
    assert "taken down" not in result.stdout
    assert result.stdout.endswith("\n") == (code == 0)


@posix
def test_an_output_that_fails_at_the_end_is_not_passed_over(tmp_path):
    with open("/dev/full", "w") as full:
        process = Cli(tmp_path).start("presets", python=("-c", LEAVING), stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert "No space left on device" in err


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
    rates = "0.01 for adam, 0.01 for adamw, (1 - momentum) 0.1 / 0.5 / 0.3 for sgd, 0.02 for muon"
    assert f"default {rates} (gpt / rnn / rnn-att)" in " ".join(out.split())
    out, _ = call("sample", "--help")
    for name in ("run", "temperature", "num-samples", "top-k", "top-p", "prompt", "seed"):
        assert re.search(rf"^  --{name}\b", out, re.M)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown command 'trian' (did you mean train?): see tapegpt --help"),
        (["--quiet"], "unknown flag '--quiet': see tapegpt --help"),
        (["train", "--step", "5"], "unknown flag '--step' (did you mean --steps?): see tapegpt tr"),
        (["train", "--n-emb=5"], "unknown flag '--n-emb' (did you mean --n-embd?)"),
        (["train", "--n_embd=5"], "unknown flag '--n_embd' (did you mean --n-embd?)"),
        (["sample", "--temprature", "1"], "(did you mean --temperature?)"),
        (["train", "names.txt"], "unknown argument 'names.txt' (did you mean --data names.txt?)"),
        (["train", "--resume", "."], "unknown argument '.' (did you mean --out .?)"),
        (["baseline", "a b"], "unknown argument 'a b' (did you mean --data 'a b'?)"),
        (["sample", "runs/my"], "unknown argument 'runs/my' (did you mean --run runs/my?)"),
        (["bench", "runs/my"], "unknown argument 'runs/my': see tapegpt bench --help"),
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


def test_without_arguments_there_is_the_help(call):
    out, err = call()
    assert out == call("--help")[0]
    assert err == ""
    assert all(re.search(rf"^    {command}\b", out, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_sentence_in_a_group(command):
    for action in registry.parser_of(command)._actions:
        assert action.help and len(action.help) > 8, action


def test_the_console_command_is_the_module(tmp_path):
    script = Path(sys.executable).with_name("tapegpt")
    if not script.exists():
        pytest.skip("not installed")
    for arguments in (["--version"], ["train", "--steps", "x"]):
        ran = [
            subprocess.run([*start, *arguments], cwd=tmp_path, capture_output=True, text=True)
            for start in ([script], [sys.executable, "-m", "tapegpt"])
        ]
        one, other = ((run.returncode, run.stdout, run.stderr) for run in ran)
        assert one == other


# presets


def test_presets_spells_them_out(call, refused):
    out, _ = call("presets")
    assert re.findall(r"^\S+$", out, re.M) == list(PRESETS)
    one, _ = call("presets", "microgpt")
    assert one in out
    assert "    --learning-rate 0.01\n" in one
    assert json.loads(call("presets", "--json")[0]) == PRESETS
    refused("presets", "microgtp", names="did you mean microgpt?")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_flags_that_it_is_spelled_as(call, name):
    flags = call("presets", name)[0].split()[1:]
    options = registry.parser_of("train").parse(flags)
    assert configure(None, given(options, ModelConfig, TrainConfig)) == configure(name, {})


# --config


def test_flags_from_a_file(call):
    Path("c.toml").write_text(
        f'steps = 7\nn_embd = 8\n"learning-rate" = 0.02\noptimizer = "sgd"\nquiet = true\n'
        f'data = ["{SKY}"]\n'
    )
    _, err = call("train", "--config", "c.toml", "--steps", "5")
    assert err == ""
    run = load(Path("out"))
    assert (run.training.steps, run.model.n_embd, run.training.optimizer) == (5, 8, "sgd")
    assert run.training.learning_rate == 0.02
    call("train", "--config", "c.toml", "--seconds", "0.05", "--out", "b")
    assert load(Path("b")).training.seconds == 0.05
    Path("s.toml").write_text('num-samples = 3\nprompt = "--a"\n')
    assert "'-' (U+002D)" in call("sample", "--config", "s.toml", code=1)[1]
    assert len(call("sample", "--config", "s.toml", "--prompt", "a")[0].splitlines()) == 3


def test_the_settings_of_a_run_as_such_a_file(call):
    flags = ["--model", "rnn", "--optimizer", "sgd", "--steps", "4", "--threads", "1"]
    shutil.copy(SKY, "it's \u00e9.txt")
    call("train", "--data", SKY, "--data", "it's \u00e9.txt", *flags)
    text = call("info", "--toml")[0]
    assert "# The run in out.\n# It was begun by: tapegpt train --data " in text
    Path("c.toml").write_text(text, encoding="utf-8")
    Path("elsewhere").mkdir()
    call("train", "--config", "c.toml", "--out", "elsewhere/b")
    assert saved(Path("elsewhere/b")) == saved(Path("out"))


def test_a_file_of_settings_says_what_it_does_not_know(call):
    call("train", "--steps", "3", "--n-embd", "8")
    assert "data" not in call("info", "--toml")[0]  # the names, as without --data
    (Path("out") / HISTORY).unlink()
    assert (
        "# It does not say what it was trained on: add data = FILE.\n"
        in (call("info", "--toml")[0])
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stps = 3", "has 'stps', which is no flag of this command (did you mean steps?)"),
        ("config = 'x'", "has 'config', which is no flag"),
        ("steps = 'many'", "--steps 'many' is not a whole number"),
        ("steps = true", "has steps = True: choose a number or a string"),
        ("steps = {a = 1}", "has steps = {'a': 1}: choose a number or a string"),
        ("quiet = 3", "has quiet = 3: choose true or false"),
        ("steps = ", "is not TOML"),
        ("\\xff", "is not TOML"),
        ("[model]\nn-embd = 3", "has model = {'n-embd': 3}: choose a number or"),
    ],
)
def test_files_that_are_no_settings(refused, text, said):
    Path("c.toml").write_text(text)
    refused("train", "--config", "c.toml", names=said)


def test_a_file_of_settings_that_cannot_be_read(call):
    Path("d.toml").mkdir()
    for name, problem in (("d.toml", "Is a directory"), ("no.toml", "No such file or directory")):
        _, err = call("train", "--config", name, code=1)
        assert err == (
            f"tapegpt: error: cannot read --config '{name}': {problem}: choose another file\n"
        )


def test_completion(call, monkeypatch):
    for shell in registry.SHELLS:
        monkeypatch.setitem(sys.modules, "shtab", None)
        _, err = call("completion", shell, code=1)
        assert "pip install shtab" in err
    monkeypatch.delitem(sys.modules, "shtab")
    pytest.importorskip("shtab")
    out, _ = call("completion", "bash")
    assert "--learning-rate" in out and "warmup" in out
