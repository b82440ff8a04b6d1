"""Seeded campaigns of damage and forgery: a run loads whole or is refused, and no more happens.

They run in a process of their own, which has little memory to spare and watches what Python does
while a run is loaded: it may open the run's two files and no others, and execute nothing.
"""

import json
import os
import pickle
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from saved_run import (
    HOSTILE,
    forge,
    forge_settings,
    forge_tensors,
    make_run,
    mutate,
    plain,
    python,
    tensors_file,
)

from tapegpt.checkpoint import OURS, RunError, load, save

ROOM = 256 << 20  # bytes that loads may take beyond what the process begins with
PATIENCE = 30  # seconds that a load may take before it counts as hanging
HUGE = [2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -1, 0]


def damage(folder, other, generator):
    path, foreign = generator.choice(
        [(folder / "run.json", other / "run.json"), (tensors_file(folder), tensors_file(other))]
    )
    path.write_bytes(mutate(path.read_bytes(), generator, foreign.read_bytes()))


def swap(folder, other, generator):
    ours, theirs = ([f / "run.json", tensors_file(f)] for f in (folder, other))
    path = generator.choice(ours)
    path.write_bytes(generator.choice([p for p in ours + theirs if p != path]).read_bytes())
    if path.read_bytes() == theirs[0].read_bytes():  # half of another run, the tensors with it
        theirs[1].rename(folder / ours[1].name)


def replace_by_something_else(folder, other, generator):
    path = generator.choice([folder / "run.json", tensors_file(folder)])
    if generator.random() < 0.2:
        os.truncate(path, generator.choice([0, 1, 1 << 20, 1 << 36]))
        return
    path.unlink()
    make = generator.choice(
        [
            os.mkfifo,
            os.mkdir,
            lambda path: path.symlink_to(other / "run.json"),
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.symlink_to(path),
            lambda path: None,
        ]
    )
    make(path)


def forge_a_setting(folder, other, generator):
    """Digests fit, so only the checks behind them are left."""

    def edit(data):
        tables = [data, data["model"], data["training"]]
        table = generator.choice(tables)
        name = generator.choice(list(table))
        value = generator.choice(HOSTILE + HUGE)
        match generator.randrange(4):
            case 0:
                del table[name]
            case 1:
                table[generator.choice(["more", "", "../x", "__class__"])] = value
            case _:
                table[name] = value

    forge_settings(folder, edit)


def forge_the_sizes(folder, other, generator):
    """A model far larger than what the tensors' file holds, in several settings at once."""
    sizes = {
        "n_layer": [2, 1024],
        "ensemble": [2, 1024],
        "look_back": [1, 2, 10**6, 2**31 - 2],
        "block_size": [4, 10**6, 2**31 - 1],
        "n_embd": [6, 10**4, 2**31 - 2],
    }
    chosen = generator.sample(list(sizes), generator.randint(1, len(sizes)))

    def edit(data):
        data["model"] |= {name: generator.choice(sizes[name]) for name in chosen}
        if "look_back" in chosen and generator.random() < 0.5:
            data["model"]["block_size"] = 2**31 - 1

    forge_settings(folder, edit)


def forge_a_text(folder, other, generator):
    rest = (folder / "run.json").read_bytes().partition(b"\n")[2]
    match generator.randrange(50):
        case 0:
            rest = b'"a": ' + b"[" * generator.randrange(1, 8 << 20)
        case 2:
            piece = generator.choice([b'{"":0},', b"[],", b'"ab",', b'{"a":{"b":[1]}},'])
            rest = b'"a": [' + piece * ((8 << 20) // len(piece) - 100) + b"0]}\n"
        case 1:
            rest = b'"a": [' + b"0," * generator.randrange(1, 4 << 20) + b"0]}\n"
        case _:
            rest = mutate(rest, generator, tensors_file(other).read_bytes())
    forge(folder, rest)


def forge_a_header(folder, other, generator):
    blob = tensors_file(folder).read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header, body = blob[8 : 8 + size], blob[8 + size :]
    match generator.randrange(3):
        case 0:
            header = mutate(header, generator, body)
        case 1:
            table = json.loads(header)
            names = [name for name in table if name != "__metadata__"]
            tensor = table[generator.choice(names)]
            place = generator.choice(["shape", "data_offsets", "dtype", "name", "more"])
            value = generator.choice(HUGE)
            match place:
                case "dtype":
                    tensor["dtype"] = generator.choice(["F64", "I64", "BF16", "F8_E4M3", "", "O"])
                case "name":
                    table[generator.choice(["../wte", "wte\0", "/etc/passwd", "more"])] = tensor
                    if generator.random() < 0.5:
                        del table[generator.choice(names)]
                case "more":
                    table["__metadata__"] = {"format": "x" * generator.randrange(1 << 12)}
                case _:
                    i = generator.randrange(2)
                    tensor[place][i] = value
                    if generator.random() < 0.3:
                        tensor[place] = [value] * generator.randrange(20)
            header = json.dumps(table, separators=(",", ":")).encode()
        case 2:
            size = generator.choice([0, 1, 7, size - 1, size + 1, size + 8, *HUGE])
            forge_tensors(folder, (size % 2**64).to_bytes(8, "little") + header + body)
            return
    forge_tensors(folder, len(header).to_bytes(8, "little") + header + body)


# How a run is hurt, how often, and whether what the digests vouch for may load.
KINDS = {
    damage: (50, False),
    swap: (5, False),
    replace_by_something_else: (5, False),
    forge_a_setting: (15, True),
    forge_the_sizes: (5, False),
    forge_a_text: (10, True),
    forge_a_header: (15, True),
}


def empty(folder):
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


class Watch:
    """Notes what Python reports while it is on, but for opening the files of a run in `folder`."""

    def __init__(self, folder):
        self.folder, self.on, self.seen = str(folder), False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        harmless = event == "builtins.id" or (event == "open" and self.ours(str(arguments[0])))
        if self.on and not harmless:
            self.seen.append((event, str(arguments)[:200]))

    def ours(self, path):
        head, tail = os.path.split(path)
        return head == self.folder and bool(re.fullmatch(OURS, tail))


def self_consistent(folder, again):
    """Whether what loads from the folder is what a save writes there, to the byte.

    But for settings that the folder does not name, whose defaults a save writes.
    """
    save(load(folder), again)
    mutant, rewritten = (json.loads((place / "run.json").read_bytes()) for place in (folder, again))
    for part in ("model", "training"):
        for name in rewritten[part].keys() - mutant[part].keys():
            del rewritten[part][name]
            mutant["digest"] = rewritten["digest"]
    return (
        repr(mutant) == repr(rewritten)
        and tensors_file(folder).read_bytes() == tensors_file(again).read_bytes()
    )


def campaign(root, mutants, seed):
    """Print how many mutants of each kind were refused, how many loaded, and the slowest load, in
    seconds of processor time."""
    generator = random.Random(seed)
    run, second = make_run(), make_run(seed=1)
    folder, other, again = (root / name for name in ("out", "other", "again"))
    watch = Watch(folder)
    save(run, folder)
    save(second, other)
    pristine = {path: path.read_bytes() for path in [*folder.iterdir(), *other.iterdir()]}
    assert plain(load(folder)) == plain(run)
    with open("/proc/self/statm") as statm:
        limit = int(statm.read().split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    refused, loaded, slowest = Counter(), Counter(), 0.0
    for number in range(mutants):
        (kind,) = generator.choices(list(KINDS), [weight for weight, _ in KINDS.values()])
        for place in (folder, other):
            empty(place)
        for path, data in pristine.items():
            path.write_bytes(data)
        kind(folder, other, generator)
        problem = None
        signal.alarm(PATIENCE)
        begin = time.process_time()
        watch.on = True
        try:
            found = load(folder)
        except RunError as error:
            problem = str(error)
        watch.on = False
        slowest = max(slowest, time.process_time() - begin)
        signal.alarm(0)
        assert not watch.seen, (number, kind.__name__, watch.seen)
        if problem is not None:
            assert "\n" not in problem and len(problem) < 500, (number, problem)
            assert "does not fit into memory" not in problem, (number, kind.__name__, problem)
            refused[kind.__name__] += 1
        else:
            assert KINDS[kind][1], (number, kind.__name__)
            assert plain(found) == plain(run) or self_consistent(folder, again), number
            loaded[kind.__name__] += 1
    print(json.dumps([refused, loaded, slowest]))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the size of the process")
@pytest.mark.parametrize("mutants", [600, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_hurt_run_is_refused(tmp_path, mutants):
    command = "import sys, pathlib, test_damaged_runs as t\n"
    command += "t.campaign(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 5)"
    refused, loaded, _ = json.loads(python(command, tmp_path, mutants))
    assert sum(refused.values()) + sum(loaded.values()) == mutants
    assert refused.keys() == {kind.__name__ for kind in KINDS}
    assert sum(loaded.values()) < mutants // 10


class Attack:
    """What a pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "place", [forge_tensors, forge, lambda folder, data: (folder / "run.json").write_bytes(data)]
)
def test_a_pickle_is_never_unpickled(tmp_path, place):
    folder, trace = tmp_path / "out", tmp_path / "executed"
    save(make_run(), folder)
    place(folder, pickle.dumps(Attack(trace)))
    with pytest.raises(RunError):
        load(folder)
    assert not trace.exists()
