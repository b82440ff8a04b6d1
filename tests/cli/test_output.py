"""Where output goes: full disks, closed pipes, terminals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SKY, posix


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
        escaped = "\\x1b]0;a\\x07\\x9b2J\\x7f\\u202eb\\u2066\tc\u05d0\u200d"
        assert f"{escaped}  in the corpus\n" in shown
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
