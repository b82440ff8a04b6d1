"""The kernel cache, seen from outside: every run is a process of its own, on a package of its own.

The package holds a copy of kernels/compile/ and two small kernels files, one calling the other.
"""

import compileall
import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tapegpt import vmath
from tapegpt.system import ownership

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes")
COMPILE = Path(__file__).parents[2] / "kernels" / "compile"

INNER = """
from tiny.compile.jit import jit

@jit
def inner(x):
    return x + 1
"""

OUTER = """
from tiny.inner import inner
from tiny.compile.jit import jit

@jit
def outer(x):
    return 10 * inner(x)

@jit
def element(a, i):
    return a[i]

def make_times(factor):
    @jit
    def times(x):
        return factor * x
    return times

def make_after(first):
    @jit
    def after(x):
        return first(x) + 1
    return after
"""

# Runs the expression in its arguments; prints its value, the log, and how often the cache hit.
PROBE = """
import json, logging, sys
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append([record.levelname, record.getMessage()])
logging.getLogger("tapegpt").addHandler(handler)
logging.getLogger("tapegpt").setLevel(logging.INFO)
import numpy as np
from tiny.compile.jit import jit
from tiny.outer import element, make_after, make_times, outer
exec(sys.argv[2])
value = eval(sys.argv[1])
print(json.dumps({"value": value, "log": records}))
"""

COMPILING = ["INFO", "compiling kernels that the cache does not have yet"]


@dataclass(frozen=True)
class Run:
    value: object
    log: list[list[str]]

    @property
    def compiled(self) -> bool:
        return COMPILING in self.log

    @property
    def warnings(self) -> list[str]:
        return [message for level, message in self.log if level == "WARNING"]


@dataclass(frozen=True)
class Tiny:
    """A package directory and the cache directory its processes use."""

    root: Path

    @property
    def package(self) -> Path:
        return self.root / "tiny"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def start(self, expression: str, setup: str, env: dict[str, str]) -> subprocess.Popen[str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("NUMBA_") and name != "XDG_CACHE_HOME"
        }
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROBE, expression, setup],
            env={**clean, "PYTHONPATH": str(self.root), "NUMBA_CACHE_DIR": str(self.cache), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, expression: str = "outer(1.0)", setup: str = "", **env: str) -> Run:
        return finish(self.start(expression, setup, env))

    def files(self) -> list[Path]:
        return sorted(self.cache.glob("tapegpt/*/*"))


def finish(process: subprocess.Popen[str]) -> Run:
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return Run(**json.loads(output))


def make_tiny(root: Path) -> Tiny:
    tiny = Tiny(root)
    tiny.package.mkdir()
    shutil.copytree(COMPILE, tiny.package / "compile", ignore=shutil.ignore_patterns("__pycache__"))
    (tiny.package / "__init__.py").touch()
    (tiny.package / "inner.py").write_text(INNER)
    (tiny.package / "outer.py").write_text(OUTER)
    return tiny


@pytest.fixture
def empty(tmp_path: Path) -> Tiny:
    return make_tiny(tmp_path)


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = make_tiny(tmp_path_factory.mktemp("warmed"))
    run = tiny.run()
    assert run.value == 20.0
    assert run.log == [COMPILING]
    return tiny


@pytest.fixture
def warm(warmed: Tiny, tmp_path: Path) -> Tiny:
    """A package of its own whose cache holds outer(float64)."""
    shutil.copytree(warmed.root, tmp_path, dirs_exist_ok=True)
    return Tiny(tmp_path)


def test_second_process_takes_the_kernel_from_the_cache(warm: Tiny) -> None:
    assert warm.run() == Run(20.0, [])


def test_other_argument_types_are_another_kernel(warm: Tiny) -> None:
    assert warm.run("outer(1)") == Run(20, [COMPILING])
    assert warm.run("[outer(1), outer(1.0)]") == Run([20, 20.0], [])


def test_editing_a_callee_in_another_file_takes_effect(warm: Tiny) -> None:
    (warm.package / "inner.py").write_text(INNER.replace("x + 1", "x + 2"))
    assert warm.run() == Run(30.0, [COMPILING])


def test_functions_outside_the_package_are_not_cached(warm: Tiny) -> None:
    module = warm.root / "elsewhere.py"
    setup = "from elsewhere import f"
    for constant in (1, 2):
        module.write_text(
            f"from tiny.compile.jit import jit\n@jit\ndef f(x):\n    return x + {constant}\n"
        )
        assert warm.run("f(1.0)", setup).value == 1.0 + constant


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, lambda data: b"garbage" * 1000],
    ids=["truncated", "flipped bit", "garbage"],
)
def test_damaged_file_is_compiled_again_and_mended(warm: Tiny, damage) -> None:
    for file in warm.files():
        file.write_bytes(damage(file.read_bytes()))
    run = warm.run()
    assert run.value == 20.0
    assert run.compiled
    assert len(run.warnings) == 1
    assert str(warm.cache) in run.warnings[0]
    assert ".nbc is damaged" in run.warnings[0]
    assert warm.run() == Run(20.0, [])


def assert_compiled_with_one_warning(run: Run, mention: str) -> None:
    assert run.value == 20.0
    assert run.compiled
    assert len(run.warnings) == 1
    assert mention in run.warnings[0]
    assert "NUMBA_CACHE_DIR" in run.warnings[0]
    assert "\n" not in run.warnings[0]


def test_cache_directory_that_cannot_be_made(empty: Tiny) -> None:
    blocked = empty.root / "file"
    blocked.touch()
    run = empty.run(NUMBA_CACHE_DIR=str(blocked))
    assert_compiled_with_one_warning(run, str(blocked))


def test_full_disk(empty: Tiny) -> None:
    setup = """
import errno, os, pathlib
def write_some(path, data):
    with open(path, "wb") as file:
        file.write(data[:100])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
pathlib.Path.write_bytes = write_some
"""
    run = empty.run(setup=setup)
    assert_compiled_with_one_warning(run, os.strerror(28))
    assert empty.files() == []


@pytest.mark.skipif(sys.platform == "win32", reason="LOCALAPPDATA, not a home directory")
def test_home_directory_that_does_not_exist(empty: Tiny) -> None:
    run = empty.run(NUMBA_CACHE_DIR="", HOME="/dev/null")
    assert_compiled_with_one_warning(run, "/dev/null")


def test_no_home_directory(empty: Tiny) -> None:
    setup = """
import pathlib
def home():
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = home
"""
    run = empty.run(setup=setup, NUMBA_CACHE_DIR="", LOCALAPPDATA="")
    assert_compiled_with_one_warning(run, "Could not determine home directory")


@posix
def test_a_folder_that_is_gone(empty: Tiny) -> None:
    (empty.root / "gone").mkdir()
    setup = f"import os; os.chdir({str(empty.root / 'gone')!r}); os.rmdir(os.getcwd())"
    run = empty.run(setup=setup, NUMBA_CACHE_DIR="cache")
    assert_compiled_with_one_warning(run, "No such file or directory")


def test_cache_that_cannot_be_written_still_serves(warm: Tiny) -> None:
    setup = """
import os
def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
os.utime = os.replace = os.mkdir = refuse
"""
    assert warm.run(setup=setup) == Run(20.0, [])


@pytest.mark.skipif(sys.platform != "linux", reason="the Linux default")
def test_default_directory_is_private_and_the_users_own(empty: Tiny) -> None:
    home = empty.root / "home"
    assert empty.run(NUMBA_CACHE_DIR="", HOME=str(home)).warnings == []
    (version,) = (home / ".cache" / "tapegpt").iterdir()
    for directory in (version, version.parent):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_new_version_removes_those_unused_for_a_month(warm: Tiny) -> None:
    root = warm.cache / "tapegpt"
    (current,) = root.iterdir()
    stale, foreign = root / ("0" * 16), root / "somebody's"
    for directory in (stale, foreign):
        directory.mkdir()
        (directory / "file").touch()
    for directory in (stale, foreign, current):
        os.utime(directory, (0, 0))
    # Use makes it young again.
    assert warm.run() == Run(20.0, [])

    (warm.package / "inner.py").write_text(INNER.replace("x + 1", "x + 2"))
    assert warm.run().value == 30.0
    assert not stale.exists()
    assert foreign.exists()
    assert current.exists()
    assert len(list(root.iterdir())) == 3


def test_bounds_checking_is_another_kernel(empty: Tiny) -> None:
    # The element lies outside the view but inside its base.
    expression = "element(np.arange(4.0)[:2], 3)"
    assert empty.run(expression).value == 3.0

    checked = empty.start(expression, "", {"NUMBA_BOUNDSCHECK": "1"})
    _, errors = checked.communicate()
    assert checked.returncode != 0
    assert "IndexError" in errors
    assert empty.run(expression) == Run(3.0, [])


def test_optimisation_level_is_another_kernel(warm: Tiny) -> None:
    assert warm.run(NUMBA_OPT="1") == Run(20.0, [COMPILING])


def test_other_cpu_or_features_is_another_kernel(warm: Tiny) -> None:
    # aes exists on x86 and on ARM.
    for features in ("", "+aes"):
        env = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
        assert warm.run(**env) == Run(20.0, [COMPILING])
        assert warm.run(**env) == Run(20.0, [])
    assert warm.run() == Run(20.0, [])


@pytest.mark.parametrize("expressions", [["outer(1.0)"] * 2, ["outer(1.0)", "outer(1)"]])
def test_processes_that_fill_an_empty_cache_together(empty: Tiny, expressions: list[str]) -> None:
    # Neither process saves anything before both have found the cache empty.
    meeting = empty.root / "meeting"
    meeting.mkdir()
    setup = f"""
import os, pathlib, time
from tiny.compile.kernel_cache import KernelCache
save, meeting = KernelCache.save_overload, pathlib.Path({str(meeting)!r})
def save_together(*args):
    (meeting / str(os.getpid())).touch()
    while len(list(meeting.iterdir())) < 2:
        time.sleep(0.01)
    save(*args)
KernelCache.save_overload = save_together
"""
    processes = [empty.start(expression, setup, {}) for expression in expressions]
    for process in processes:
        assert finish(process) == Run(20, [COMPILING])
    for expression in expressions:
        assert empty.run(expression) == Run(20, [])


@pytest.mark.long
def test_processes_that_fill_an_empty_cache_at_random_moments(empty: Tiny) -> None:
    generator = random.Random(1)
    for _ in range(100):
        processes = []
        for _ in range(2):
            processes.append(empty.start("[outer(1.0), outer(1), make_times(3)(2)]", "", {}))
            time.sleep(generator.choice([0, 0.01, 0.1]))
        for process in processes:
            run = finish(process)
            assert (run.value, run.warnings) == ([20, 20, 6], [])
        assert empty.run("[outer(1.0), outer(1), make_times(3)(2)]") == Run([20, 20, 6], [])
        shutil.rmtree(empty.cache)


def test_threads_that_fill_an_empty_cache_together(empty: Tiny) -> None:
    setup = "from concurrent.futures import ThreadPoolExecutor"
    expression = "list(ThreadPoolExecutor(4).map(outer, [1.0, 1, 2.0, 2] * 3))"
    assert empty.run(expression, setup) == Run([20, 20, 30, 30] * 3, [COMPILING])
    assert empty.run(expression, setup) == Run([20, 20, 30, 30] * 3, [])


def test_kernels_of_a_factory_differ_by_what_they_close_over(empty: Tiny) -> None:
    expression = "[make_times(2)(5), make_times(3)(5), make_times(2.0)(5)]"
    assert empty.run(expression) == Run([10, 15, 10.0], [COMPILING])
    assert empty.run(expression) == Run([10, 15, 10.0], [])
    assert empty.run("make_times(4)(5)") == Run(20, [COMPILING])


def test_kernels_that_close_over_kernels(empty: Tiny) -> None:
    expression = "[make_after(make_times(2))(5), make_after(make_times(3))(5)]"
    assert empty.run(expression) == Run([11, 16], [COMPILING])
    assert empty.run(expression) == Run([11, 16], [])


as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can give files away"
)
NOBODY = 65534


class Attack:
    """What a pickle does when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def poison(tiny: Tiny) -> Path:
    """Have the file of `outer`, its checksum right, leave a trace when it is unpickled."""
    trace = tiny.root / "executed"
    pickled = pickle.dumps(Attack(trace))
    levels(tiny)[-1].write_bytes(hashlib.sha256(pickled).digest() + pickled)
    return trace


def levels(tiny: Tiny) -> list[Path]:
    """The folders of the cache, the outermost first, and its file."""
    (file,) = (file for file in tiny.files() if file.name.startswith("outer"))
    return [*reversed(file.parents[:3]), file]


@posix
def test_poison_works(warm: Tiny) -> None:
    trace = poison(warm)
    warm.run()
    assert trace.exists()


@posix
@pytest.mark.parametrize("level", range(4))
def test_what_others_can_write_is_not_executed(warm: Tiny, level: int) -> None:
    trace = poison(warm)
    levels(warm)[level].chmod(0o777)
    assert_compiled_with_one_warning(warm.run(), f"everybody can write to '{levels(warm)[level]}'")
    assert not trace.exists()


@as_root
@pytest.mark.parametrize("level", range(4))
def test_what_belongs_to_others_is_not_executed(warm: Tiny, level: int) -> None:
    trace = poison(warm)
    os.chown(levels(warm)[level], NOBODY, NOBODY)
    message = f"'{levels(warm)[level]}' belongs to somebody else (user {NOBODY})"
    assert_compiled_with_one_warning(warm.run(), message)
    assert not trace.exists()


@as_root
def test_a_link_of_somebody_else_is_not_followed(warm: Tiny) -> None:
    """Not even to files of this user."""
    shared = warm.root / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "tapegpt"
    link.symlink_to(warm.cache / "tapegpt")
    assert warm.run(NUMBA_CACHE_DIR=str(shared)) == Run(20.0, [])
    os.lchown(link, NOBODY, NOBODY)
    run = warm.run(NUMBA_CACHE_DIR=str(shared))
    assert_compiled_with_one_warning(run, f"'{link}' belongs to somebody else")


@posix
def test_a_shared_folder_with_a_sticky_bit_will_do(empty: Tiny) -> None:
    """As /tmp: others cannot replace what is in it."""
    empty.cache.mkdir()
    empty.cache.chmod(0o1777)
    assert empty.run() == Run(20.0, [COMPILING])
    assert empty.run() == Run(20.0, [])


@posix
def test_files_are_private_whatever_the_umask(empty: Tiny) -> None:
    assert empty.run(setup="import os; os.umask(0)").value == 20.0
    assert [path.stat().st_mode & 0o777 for path in levels(empty)[1:]] == [0o700, 0o700, 0o600]


@posix
def test_a_group_of_ones_own_is_nobody_else(tmp_path: Path, monkeypatch) -> None:
    tmp_path.chmod(0o770)
    name = ownership.pwd.getpwuid(os.geteuid()).pw_name
    for group, members, safe in [
        (name, [], True),
        ("root", ["root"], True),
        (name, [name, "eve"], False),
        ("users", [], False),
    ]:
        entry = SimpleNamespace(gr_name=group, gr_mem=members)
        monkeypatch.setattr(ownership.grp, "getgrgid", lambda number, entry=entry: entry)
        with nullcontext() if safe else pytest.raises(PermissionError, match="others can write"):
            ownership.check_folder(tmp_path)


@posix
def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "around").symlink_to("around")
    (tmp_path / "file").touch()
    for name, problem in [("around", OSError), ("file", NotADirectoryError)]:
        with pytest.raises(problem):
            ownership.check_folder(tmp_path / name / "more")
    (tmp_path / "up").symlink_to("../" + tmp_path.name)
    ownership.check_folder(tmp_path / "up" / ".." / tmp_path.name)


def put_hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@posix
@pytest.mark.parametrize(
    "put",
    [
        os.mkfifo,
        os.mkdir,
        Path.touch,
        put_hole,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
    ],
    ids=["pipe", "folder", "empty", "hole", "zeros", "loop"],
)
def test_what_is_no_file_of_the_cache(warm: Tiny, put) -> None:
    """It neither hangs nor fills memory."""
    for file in warm.files():
        file.unlink()
        put(file)
    assert_compiled_with_one_warning(warm.run(), str(warm.cache))


@posix
def test_a_relative_cache_home_is_ignored(empty: Tiny) -> None:
    home = empty.root / "home"
    setup = f"import os; os.chdir({str(empty.root)!r})"
    run = empty.run(setup=setup, NUMBA_CACHE_DIR="", XDG_CACHE_HOME="relative", HOME=str(home))
    assert run == Run(20.0, [COMPILING])
    assert not (empty.root / "relative").exists()
    if sys.platform == "linux":
        assert len(list(home.glob(".cache/tapegpt/*/outer*"))) == 1


@posix
def test_a_relative_home_is_none(empty: Tiny) -> None:
    setup = f"import os; os.chdir({str(empty.root)!r})"
    run = empty.run(setup=setup, NUMBA_CACHE_DIR="", HOME="relative")
    assert_compiled_with_one_warning(run, "the home directory 'relative' is not absolute")
    assert not (empty.root / "relative").exists()


def test_a_package_in_a_zip_file_has_a_cache(empty: Tiny) -> None:
    path = shutil.make_archive(str(empty.root / "package"), "zip", empty.root, "tiny")
    shutil.rmtree(empty.package)
    assert empty.run(PYTHONPATH=path) == Run(20.0, [COMPILING])
    assert empty.run(PYTHONPATH=path) == Run(20.0, [])


def test_a_package_without_sources_has_a_cache(empty: Tiny) -> None:
    compileall.compile_dir(empty.package, legacy=True, quiet=2)
    for source in empty.package.rglob("*.py"):
        source.unlink()
    assert empty.run() == Run(20.0, [COMPILING])
    assert empty.run() == Run(20.0, [])


def test_kernels_can_be_copied_and_pickled():
    made = copy.copy(vmath.exp), copy.deepcopy(vmath.exp), pickle.loads(pickle.dumps(vmath.exp))
    assert all(kernel is vmath.exp.dispatcher for kernel in made)
