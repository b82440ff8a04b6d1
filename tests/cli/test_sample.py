"""`sample`."""

import shutil
import signal

from command_line import (
    posix,
)


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
