"""Text and arguments that nobody would choose: each trains, or ends in one clear line.

Texts are generated, and Python's own text files say what is in them. The flags are those that the
parser knows: a new one is tried too, and has to join the tables here where it takes what the others
refuse.
"""

import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import unicodedata
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

from tapegpt import corpus
from tapegpt.bounds import Number, Whole, flag
from tapegpt.checkpoint import load
from tapegpt.commands import bench, registry
from tapegpt.corpus.documents import MEMORY
from tapegpt.errors import TapegptError
from tapegpt.setting import GRANULARITIES, MODELS, OPTIMIZERS, SCHEDULES, settings_of, unmet
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
from tapegpt.system.host import bytes_available

posix = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and permissions")

SECONDS = 60  # until a call counts as hanging
TINY = ("--n-embd", "8", "--n-head", "2", "--steps", "2")


@contextmanager
def alarm(seconds, action):
    """Do something so many seconds from now, unless what is in the context is done before."""
    if os.name != "posix":
        yield
        return
    previous = signal.signal(signal.SIGALRM, action)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def hangs(number, frame):
    raise AssertionError("it hangs")


def interrupt(number, frame):
    os.kill(os.getpid(), signal.SIGINT)


def contents(folder):
    """The names and bytes of all files below a folder."""
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def assert_one_line(err):
    assert err.startswith("tapegpt: error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < 1100


# Text

PIECES = {
    "plain": "abcdefghijklmnopqrstuvwxyz",
    "one": "a",
    "spaces": " \t\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000",
    "invisible": "a\ufeff\u200b\u2060\u00ad\ufffe\uffff\U000e0001",
    "controls": "\x01\x02\a\b\x1b[31m\x7f\x80\x9b",
    "combining": "e\u0301\u0308\u0323\u20dd\u0f39\u1ab0",
    "right to left": "\u0627\u0644\u05d0\u05d1\u202e\u202d\u2066\u2069\u200f",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\U0001f3fd\ufe0f\U0001f1e9\U0001f1ea",
    "ends": "\ud7ff\ue000\U00010000\U0010ffff",
    "markup": "'\"\\{}%s%n$(`<&;\u2018",
    "wide": "".join(map(chr, range(0x4E00, 0x5000))),
}
LINE_ENDS = ("\n", "\r\n", "\r", "\n\n", "\r\r\n", "\n\r", " \n\t", "\v", "\u2028", "\x85")
INVALID = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\xc0\x80",  # too long
    b"\xed\xa0\x80",  # a surrogate
    b"\xed\xa0\xbd\xed\xb8\x80",  # two
    b"\xf4\x90\x80\x80",  # beyond Unicode
    b"\xf0\x9f\x98",  # cut off
    b"\xef\xbb",
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-32-be", "utf-7", "latin-1", "shift_jis")


def hostile_text(rng):
    """A file's bytes: mostly text, much of it strange."""
    size = rng.choice([0, 1, 2, 5, 30, 300])
    alphabet = "".join(rng.choices(list(PIECES.values()), k=rng.randint(1, 3)))
    ends = rng.choices(LINE_ENDS, k=rng.randint(1, 2))
    text = ""
    for _ in range(rng.choice([0, 1, 1, 2, 20])):
        length = rng.randint(0, size)
        text += "".join(rng.choices(alphabet, k=length)) + rng.choice(ends)
    match rng.randrange(10):
        case 0:
            return rng.randbytes(size)
        case 1:
            return text.encode(rng.choice(ENCODINGS), errors="replace")
        case 2:
            return b"\xef\xbb\xbf" * rng.randint(1, 2) + text.encode()
        case 3 | 4:
            data, place = text.encode(), rng.randint(0, len(text))
            return data[:place] + rng.choice(INVALID) + data[place:]
        case 5:
            blank = rng.choice(LINE_ENDS) * 10 ** rng.randint(0, 4)
            return (text + blank + text[::-1]).encode()
        case 6:
            return (text.replace(ends[0], "") * 10 ** rng.randint(0, 2)).encode()
    return text.encode()


def expected_documents(data):
    """What Python's text files have in their lines, composed; None if that is not text."""
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    lines = unicodedata.normalize("NFC", text.replace("\ufeff", "\n")).split("\n")
    return [line.strip() for line in lines if line.strip()]


def hostile_settings(rng):
    """Flags of a training, and what of them decides the outcome: the block, what is held out."""
    block, held_out = rng.randint(1, 6), rng.choice([0, 0, 0, 0.3])
    model, optimizer = rng.choice(MODELS), rng.choice(OPTIMIZERS)
    flags = ["--block-size", block, "--model", model, "--optimizer", optimizer]
    finest = rng.choice(GRANULARITIES)
    granularity = "vector" if optimizer == "muon" else finest  # which wants whole matrices
    flags += ["--granularity", granularity, "--batch-size", rng.randint(1, 3)]
    flags += ["--n-embd", "8", "--steps", "2", "--val-fraction", held_out, "--quiet"]
    flags += {"gpt": ["--n-head", "2"], "rnn": ["--n-state", "8"]}.get(
        model, ["--n-state", "8", "--n-att", "4"]
    )
    return flags, block, held_out


def check_text(call, data, flags, block, held_out):
    """Train on these bytes and sample, or see them refused; returns whether they trained."""
    path, out = Path("text"), Path("out")
    shutil.rmtree(out, ignore_errors=True)
    path.write_bytes(data)
    documents = expected_documents(data)
    before = contents(Path())
    if not documents or (held_out and max(1, round(held_out * len(documents))) == len(documents)):
        shown, err = call("train", "--data", path, *flags, code=2 if documents else 1)
        assert shown == ""
        assert_one_line(err)
        assert ("--val-fraction" if documents else "corpus 'text' ") in err
        assert contents(Path()) == before
        return False
    alphabet = set("".join(documents))
    shown, err = call("train", "--data", path, *flags)
    for line in err.splitlines():
        assert re.match(r"tapegpt: (--block-size \d+ cuts|\d+ of \d+ held-out documents are)", line)
    check_samples(shown, 20, alphabet, block)
    run = load(out)
    assert (run.step, run.documents, run.characters) == (
        2,
        len(documents),
        "".join(sorted(alphabet)),
    )
    assert {entry.name for entry in Path().iterdir()} == {"text", "out"}
    assert {entry.suffix for entry in out.iterdir()} <= {".json", ".safetensors", ""}
    prompt = documents[0][: block - 1]
    shown, err = call("sample", "--quiet", "--num-samples", "3", f"--prompt={prompt}")
    assert err == ""
    assert all(text.startswith(prompt) for text in check_samples(shown, 3, alphabet, block))
    return True


def check_samples(shown, count, alphabet, block):
    texts = shown.split("\n")
    assert texts.pop() == ""
    assert len(texts) == count
    assert max(map(len, texts)) <= block
    assert set("".join(texts)) <= alphabet
    return texts


def check_texts(call, seeds):
    trained = 0
    for seed in seeds:
        rng = random.Random(seed)
        data, settings = hostile_text(rng), hostile_settings(rng)
        try:
            with alarm(SECONDS, hangs):
                trained += check_text(call, data, *settings)
        except BaseException:
            print(f"seed {seed}: {data[:300]!r} {settings}")
            raise
    assert 0.2 * len(seeds) < trained < 0.8 * len(seeds)


def test_hostile_texts(call):
    check_texts(call, range(100))


@pytest.mark.long
def test_ten_thousand_hostile_texts(call):
    check_texts(call, range(10_000))


@pytest.mark.parametrize(
    "data",
    [
        b"ab" * 5_000_000,
        b"\n" * 1_000_000 + b"ab\nba\n",
        ("\u0e01" * 3_000_000 + "\r\u4e00\r").encode(),
        b"a\n" * 300_000,
    ],
    ids=["one line", "blank lines", "three-byte characters", "many documents"],
)
def test_large_texts(call, data):
    with alarm(SECONDS, hangs):
        assert check_text(call, data, [*TINY, "--quiet"], 16, 0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_ten_thousand_characters(call, monkeypatch, granularity):
    alphabet = "".join(map(chr, range(0x3400, 0x3400 + 10_000)))
    data = "\n".join(alphabet[i : i + 40] for i in range(0, 10_000, 40)).encode()
    flags = [*TINY, "--block-size", "2", "--quiet", "--granularity", granularity]
    with alarm(SECONDS, hangs):
        assert check_text(call, data, flags, 2, 0)
    # What the vocabulary takes of the memory counts.
    monkeypatch.setattr("tapegpt.train.sweep_size.bytes_available", lambda: 3e6)
    _, err = call("train", "--data", "text", *flags, code=2)
    assert "--n-embd 8" in err


def special_files():
    """What a path may stand for, by name, in the current folder."""
    Path("text").write_text("ab\nba\n")
    Path("folder").mkdir()
    Path("dangling").symlink_to("nothing")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    with open("larger than memory", "wb") as file:
        file.truncate(int(4 * bytes_available()))
    with open("too large for memory", "wb") as file:  # which has room for its bytes alone
        file.truncate(int(2 * bytes_available() / MEMORY))


@posix
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("folder", "is a directory"),
        ("dangling", "cannot be read: No such file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("pipe", "is not a regular file"),
        ("socket", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("larger than memory", "does not fit into memory"),
        ("too large for memory", "does not fit into memory"),
        ("text/below", "cannot be read: Not a directory"),
        ("missing", "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_text(call, tmp_path, path, problem):
    special_files()
    before = sorted(tmp_path.rglob("*"))
    with alarm(SECONDS, hangs):
        shown, err = call("train", "--data", path, code=1)
    assert shown == ""
    assert_one_line(err)
    assert f"corpus {path!r} {problem}" in err
    assert sorted(tmp_path.rglob("*")) == before


@posix
def test_a_text_that_may_not_be_read(tmp_path):
    path = tmp_path / "text"
    path.write_text("ab\n")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(TapegptError, match="cannot be read: Permission denied: choose"):
            corpus.read_documents(path)
    finally:
        os.seteuid(user)


# Arguments

NOT_NUMBERS = [
    "",
    " ",
    "x",
    "0x10",
    "0b1",
    "1,5",
    "1__0",
    "_1",
    "1 0",
    "\u00b2",
    "\u00bd",
    "\u0663x",
]
NOT_NUMBERS += ["None", "1;2", "1\n2", "\0", "\x1b[31m", "\ud83d", "\u202e1", "x" * 5000]
OUT_OF_RANGE = ["nan", "-nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400", "-1", "-0.5"]
OUT_OF_RANGE += [str(10**400), str(-(10**400)), "9" * 5000]
NOT_WHOLE = ["1.5", "1e3", "0.0", "1.", "1/2"]
ZEROS = ["0", "-0", "+0"]
MAY_BE_ZERO = {
    "--seed",
    "--weight-decay",
    "--momentum",
    "--beta1",
    "--beta2",
    "--warmup",
    "--final-rate",
    "--val-fraction",
    "--test-fraction",
    "--averaging",
    "--dropout",
    "--look-back",
    "--counting",
    "--temperature",
}


def numbers(*kinds):
    """(name, what is known) of settings that are numbers."""
    for kind in kinds:
        for name, (known, _) in settings_of(kind).items():
            if isinstance(known.bound, Whole | Number):
                yield name, known


# Other spellings of a number that is.
SPELLINGS = [" 8", "8\n", "+8", "08", "0_8", "\u0668", "\u096e", "\uff18"]


NUMBERS = [
    *[("train", flag(name), known) for name, known in numbers(ModelConfig, TrainConfig)],
    *[("sample", flag(name), known) for name, known in numbers(SampleConfig)],
    ("bench", "--n-embd", settings_of(ModelConfig)["n_embd"][0]),
]
NAMES = [f"{command} {name}" for command, name, _ in NUMBERS]
PATHS = [
    *(("train", name) for name in ("--data", "--out", "--metrics")),
    *(("sample", "--run"), ("bench", "--json")),
]


def context(name):
    """The flags without which this one is refused whatever its value is."""
    if name in ("--eval-every", "--patience"):
        return ["--val-fraction", "0.5"]
    if name == "--eval-windows":
        return ["--text", "--val-fraction", "0.5"]
    if name == "--threads":
        return ["--batch-size", "100"]
    known = next(known for _, flag_name, known in NUMBERS if flag_name == name)
    return [word for only in known.only for word in (flag(only.other), only.values[0])]


def refusals():
    for command, name, kind in NUMBERS:
        values = NOT_NUMBERS + OUT_OF_RANGE
        values += NOT_WHOLE if isinstance(kind.bound, Whole) else []
        values += [] if name in MAY_BE_ZERO else ZEROS
        for value in values:
            yield [command, f"{name}={value}", *context(name)], name
    for command, name in PATHS:
        for value in ("", "a\0b"):
            yield [command, f"{name}={value}"], name
    yield ["train", "a\nb"], r"a\nb"
    yield ["train", "--bogus\x1b=3"], r"--bogus\x1b"
    yield ["tr\nain"], r"tr\nain"


# Calls main() with each list of arguments and prints exit codes and outputs.
PROBE = """
import contextlib, io, json, sys
from tapegpt import cli
results = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except SystemExit as error:
            code = error.code
    results.append([code, out.getvalue(), err.getvalue()])
json.dump([results, "numba" in sys.modules], sys.stdout)
"""


def test_refused_arguments(tmp_path):
    """Without numba, which takes a second to import, and without a trace."""
    arguments, names = zip(*refusals(), strict=True)
    assert len({*NAMES}) == len(NAMES) >= 20
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(arguments),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    outcomes, numba = json.loads(result.stdout)
    for call, name, (code, out, err) in zip(arguments, names, outcomes, strict=True):
        assert (code, out) == (2, ""), call
        assert_one_line(err)
        assert name in err, call
    assert not numba
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "name", "kind"), NUMBERS, ids=NAMES)
def test_spellings_of_a_number(command, name, kind):
    for spelling in SPELLINGS:
        options = registry.parser_of(command).parse([f"{name}={spelling}"])
        assert vars(options)[name[2:].replace("-", "_")] in (8, [8])


@pytest.fixture
def run(call):
    """A run under out, trained on a small text."""
    Path("text").write_text("abc\nba\ncab\n" * 4)
    call("train", "--data", "text", *TINY, "--quiet")


# Numbers at the edge of what is valid, and how a training or a sampling with them ends.
EDGES = {
    **{name: {"0": 0, "-0.0": 0, "5e-324": 0} for name in MAY_BE_ZERO},
    "--seed": {"0": 0, "18446744073709551615": 0},
    "--seconds": {"5e-324": 0, "1e-300": 0},
    "--learning-rate": {"5e-324": 0, "1e308": 3},
    "--clip-norm": {"5e-324": 0, "1e308": 0},
    "--epsilon": {"5e-324": 0, "1e308": 0},
    "--decay": {"5e-324": 0, "1": 0},
    "--cooldown": {"5e-324": 0, "1": 0},
    "--adam-rate": {"5e-324": 0, "1e308": 3},
    "--softcap": {"1e-3": 0, "1e30": 0, "1e308": 1},
    "--eval-windows": {"1": 0, "1000": 0},
    "--length": {"1": 0, "1000": 0},
    "--top-p": {"5e-324": 0, "1": 0},
    "--top-k": {"1": 0, "2147483647": 0},
    "--eval-every": {"1": 0, "9007199254740992": 0},
    "--patience": {"1": 0, "9007199254740992": 0},
    "--look-back": {"0": 0, "1": 0, "15": 0},
    "--counting": {"0": 0, "1": 0, "16": 0},
    "--ensemble": {"1": 0, "3": 0},
    "--n-layer": {"1": 0},
    "--n-head": {"1": 0},
    "--n-state": {"1": 0},
    "--n-att": {"1": 0},
    "--n-embd": {"4": 0},  # one for each head
    "--block-size": {"1": 0},
    "--steps": {"1": 0},
    "--batch-size": {"1": 0, "100000": 0},
    "--threads": {"1": 0, "64": 0},
    "--num-samples": {"1": 0, "1000": 0},
}
for name in ("--momentum", "--beta1", "--beta2"):
    EDGES[name] |= {"0.9999999999999999": 0}
EDGES["--averaging"] |= {"0.9999999999999999": 0}
EDGES["--dropout"] |= {"0.9999999999999999": 0}
EDGES["--test-fraction"] |= {"0.9": 0, "0.9999999999999999": 2}
EDGES["--warmup"] |= {"0.9999999999999999": 0}
EDGES["--final-rate"] |= {"0.9999999999999999": 0}
EDGES["--val-fraction"] |= {"0.9": 0, "0.9999999999999999": 2}
EDGES["--weight-decay"] |= {"1e308": 3}
EDGES["--temperature"] |= {"1e308": 0}


@pytest.mark.parametrize(("command", "name", "kind"), NUMBERS, ids=NAMES)
def test_numbers_at_the_edge(call, run, monkeypatch, command, name, kind):
    monkeypatch.setattr(bench, "LADDER", ())
    flags = ["--data", "text", "--quiet"] if command == "train" else []
    if command == "train" and name not in ("--steps", "--seconds"):
        flags += ["--steps", "2"]
    for value, code in EDGES[name].items():
        if isinstance(kind.bound, Whole) and not value.isdigit():
            continue
        before = contents(Path("out"))
        with alarm(SECONDS, hangs):
            out, err = call(command, *flags, f"{name}={value}", *context(name), code=code)
        if code == 0:
            assert out
        else:
            assert_one_line(err.splitlines(keepends=True)[-1])
            assert contents(Path("out")) == before


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seconds", ["5e-324", "1e-300", "1e-9"])
def test_very_short_trainings(call, run, schedule, seconds):
    for flags in ([], ["--val-fraction", "0.3"], ["--warmup", "0"]):
        if flags[:1] != ["--warmup"] or schedule == "cosine":
            kind = ["--seconds", seconds, "--schedule", schedule]
            call("train", "--data", "text", *kind, *flags)
            assert load(Path("out")).step == 1


@posix
@pytest.mark.parametrize(
    "flags",
    [
        ["--seconds", "1e308"],
        ["--seconds", "1e308", "--schedule", "cosine", "--warmup", "0"],
        ["--seconds", "1e308", "--schedule", "exponential"],
        ["--seconds", "1e308", "--val-fraction", "0.3"],
        ["--steps", str(2**53), "--schedule", "cosine"],
        ["--steps", str(2**53), "--val-fraction", "0.3"],
        ["--steps", str(2**53), "--batch-size", "5", "--threads", "3"],
    ],
    ids=" ".join,
)
def test_endless_trainings_stop_at_a_signal(call, run, flags):
    with alarm(0.2, interrupt):
        _, err = call("train", "--data", "text", *TINY[:4], *flags, code=130)
    assert "stopped after step" in err
    assert load(Path("out")).step > 2


@posix
def test_endless_sampling_stops_at_a_signal(call, run):
    with alarm(0.1, interrupt):
        out, err = call("sample", "--quiet", "--num-samples", str(2**31 - 1), code=130)
    assert out
    assert err == ""


SIZES = [setting.name for setting in fields(ModelConfig) if setting.type in (int, "int")]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SIZES)
def test_sizes_beyond_memory(refused, name, model, granularity):
    if unmet(settings_of(ModelConfig)[name][0], {"model": model}):
        return
    for size in (10**9, 2**31 - 4):
        kind = ["--granularity", granularity, "--model", model, "--metrics", "m.jsonl"]
        refused("train", *kind, flag(name), size, names=f"{flag(name)} {size}")


@pytest.mark.parametrize("width", [10**5, 10**9, 2**31 - 4])
def test_widths_of_a_bench_beyond_memory(refused, width):
    refused("bench", "--n-embd", "16", width, "--json", "b.json", names=f"--n-embd {width}")


def test_memory_that_is_not_there(call, run, monkeypatch):
    """As far as the system says so, instead of ending the process."""

    def exhausted(*arguments, **options):
        raise MemoryError

    before = contents(Path())
    for place in ("tapegpt.train.trainer.compiled_model", "tapegpt.train.data.tokenize"):
        with monkeypatch.context() as patch:
            patch.setattr(place, exhausted)
            shown, err = call("train", "--data", "text", code=1)
        assert (shown, err) == (
            "",
            "tapegpt: error: out of memory: make the model or the batch smaller\n",
        )
        assert contents(Path()) == before


# Paths that cannot be used, by flag: what is said, and what a call leaves behind.
NO_PATHS = {
    "--data": ["missing", "text/below", ".", "x" * 5000],
    "--out": ["text", "text/below", "x" * 5000],
    "--metrics": [".", "text/below", "missing/m.jsonl", "x" * 5000],
    "--run": ["missing", "text", "text/below", ".", "x" * 5000],
    "--json": [".", "text/below", "missing/b.json", "x" * 5000],
}


@pytest.mark.parametrize(("command", "name"), PATHS, ids=[name for _, name in PATHS])
def test_paths_that_cannot_be_used(call, run, monkeypatch, command, name):
    shutil.rmtree("out")
    monkeypatch.setattr(bench, "LADDER", ())
    # So many steps that nobody waits for them: the path is tried before.
    flags = {"train": ["--data", "text", "--steps", 2**53, "--quiet"]}.get(command, [])
    for path in NO_PATHS[name]:
        with alarm(SECONDS, hangs):
            _, err = call(command, *flags, name, path, code=1)
        assert_one_line(err)
        assert path[:100] in err
        left = {entry.name for entry in Path().iterdir()} - {"text"}
        assert left == ({"out"} if name == "--metrics" else set())
    assert name != "--metrics" or not list(Path("out").iterdir())
