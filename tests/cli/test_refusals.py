"""Numbers and flags that are refused in one line."""

from pathlib import Path

import pytest

from tapegpt.setting import GRANULARITIES

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
