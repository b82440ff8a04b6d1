"""`sample`."""

import itertools
import json
import re
import shutil
import signal
from pathlib import Path

from command_line import SKY, posix

from tapegpt.checkpoint import load
from tapegpt.corpus import default_corpus, read_documents
from tapegpt.runs.text import parts_of


@posix
def test_sampling_stops_at_a_signal(tapegpt, trained):
    process = tapegpt.start(
        "sample", "--run", trained[0] / "out", "--num-samples", str(10**9), "--quiet"
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")


def test_sample_uses_out(tapegpt, trained):
    shutil.copytree(trained[0] / "out", tapegpt.folder / "out")
    result = tapegpt("sample", "--temperature", "0.5", "--seed", "1")
    assert re.fullmatch(r"tapegpt: \d+ of 20 are in the corpus.*\n", result.stderr)
    assert len(result.stdout.splitlines()) == 20
    result_again = tapegpt("sample", "--seed", "1", "--quiet")
    assert (result_again.stdout, result_again.stderr) == (result.stdout, "")


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
    seed = ["--seed", "1"]
    assert call(*sample, "", *seed) == call(*sample[:-1], *seed)
    refused(*sample, "mA", code=1, names="character 'A' (U+0041)")
    refused(*sample, "\U0001f600", code=1, names="U+1F600")
    refused(*sample, "a" * 16, names=["--prompt", "16 characters", "shorten it to 15"])


def test_seed(call, run):
    sample = ["sample", "--run", run]
    seven, _ = call(*sample, "--seed", "7")
    assert call(*sample, "--seed", "7")[0] == seven
    assert call(*sample, "--seed", "8")[0] != seven
    drawn, err = call(*sample)
    assert call(*sample)[0] != drawn
    again = re.search(r"^tapegpt: (--seed \d+) draws the same again$", err, re.M)[1]
    assert call(*sample, *again.split())[0] == drawn
    assert call(*sample, "--seed", str(2**64 - 1))[0]


def test_many_samples_begin_with_the_few(call, run):
    sample = ["sample", "--seed", "2", "--run", run, "--num-samples"]
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


# New, or of the corpus


def places(run, text):
    """{document: place}, counted anew."""
    parts = parts_of(read_documents(Path(text)), load(Path(run)).training, 8)
    found = {}
    for place, documents in (("test", parts.test), ("held out", parts.held_out)):
        found |= dict.fromkeys((document[:8] for document in documents), place)
    return found | dict.fromkeys((document[:8] for document in parts.training), "training")


HELD_OUT = ["--val-fraction", "0.2", "--test-fraction", "0.2", "--block-size", "8"]


def test_every_sample_is_marked_rightly(call):
    """Of words of three letters, many of which are not in the training part."""
    words = ["".join(word) for word in itertools.product("abcd", repeat=3)]
    Path("words").write_text("\n".join(words[::2] + ["abcdabcdabcd"] * 9))
    train = ["train", "--data", "words", *HELD_OUT, "--steps", "300", "--seed", "3"]
    printed, err = call(*train, "--num-samples", "300")
    known = places("out", "words")
    count = sum(text in known for text in printed.splitlines())
    assert f"of the samples {count} of 300 are in the corpus: " in err
    many = ["--num-samples", "2000", "--temperature", "1", "--seed", "1"]
    out, err = call("sample", "--mark", *many)
    rows = [line.split("\t") for line in out.splitlines()]
    assert len(rows) == 2000
    assert all(known.get(text, "new") == place for text, place in rows)
    found = [sum(row[1] == place for row in rows) for place in ("training", "held out", "test")]
    assert min(found) > 0 and sum(found) < 2000
    assert "abcdabcd" in {text for text, place in rows if place == "training"}
    said = f"{found[0]} in the training part, {found[1]} held out, {found[2]} in the test part"
    assert f"{sum(found)} of 2000 are in the corpus: {said}\n" in err
    as_json = json.loads(call("sample", "--json", *many)[0])
    assert [[sample["text"], sample["place"]] for sample in as_json["samples"]] == rows
    assert all(sample["cut"] == (len(sample["text"]) == 8) for sample in as_json["samples"])
    assert as_json["seed"] == 1
    assert call("sample", *many)[0].splitlines() == [row[0] for row in rows]


def test_only_new_ones(call):
    train = ["train", "--data", SKY, *HELD_OUT, "--steps", "600", "--num-samples", "1"]
    call(*train)
    known = places("out", SKY)
    out, _ = call("sample", "--new", "--num-samples", "200")
    texts = out.splitlines()
    assert len(texts) == len(set(texts)) == 200
    assert not known.keys() & set(texts)
    _, err = call("sample", "--new", "--num-samples", "50", "--temperature", "0", code=1)
    assert re.search(r"of 5000 texts only (0 are|1 is) new and different: choose a higher", err)


def test_where_there_is_no_corpus_to_tell(call, refused):
    shutil.copy(SKY, "sky.txt")
    call("train", "--data", "sky.txt", "--steps", "3", "--num-samples", "1")
    Path("sky.txt").unlink()
    out, err = call("sample", "--num-samples", "4")
    assert len(out.splitlines()) == 4
    assert "samples are not marked: the text of the run is not at" in err
    for flag in ("--new", "--mark"):
        refused("sample", flag, code=1, names=["is not at", "sky.txt", "--data"])
        call("sample", flag, "--data", SKY, "--num-samples", "3")
    refused("sample", "--data", default_corpus(), code=1, names="another corpus")
