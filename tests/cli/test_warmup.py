"""`warmup`."""

import re

import pytest

from tapegpt.setting import DTYPES, GRANULARITIES

COMPILING = "compiling kernels"


def test_warmup_says_that_it_compiles(warm, tapegpt):
    out, err = warm
    first, *others = err.splitlines()
    assert (out, first) == ("", f"tapegpt: {COMPILING} that the cache does not have yet")
    counts = [re.fullmatch(r"compiling: (\d+) of (\d+) kernels", line) for line in others]
    assert all(count and 0 < int(count[1]) <= int(count[2]) for count in counts)
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
