"""The cache that keeps the machine code of kernels.

Numba's own cache looks at one file at a time, so it keeps using the old code of a kernel after a
kernel it calls, in another file, was edited. Here the cache belongs to the package as a whole:

    $NUMBA_CACHE_DIR, or the user's cache directory
        tapegpt/
            1f3a...     digest of every source file of the package, and of the versions of Python,
                        numba, llvmlite and NumPy
                matmul-float32-90b1....nbc      one compiled signature of one kernel

The name of a file, and the key stored in it, come from the kernel, what it closes over, the
argument types, the CPU and Numba's settings. So no file is ever shared between two answers, an
index that processes could overwrite for each other is not needed, and a damaged file costs one
compilation. Whatever goes wrong with the cache is said once; the kernels then work without it.

A cache file is code, so it is used only if nobody but this user and root can have written it: the
directories are made for their owner alone, and every level's owner and mode are checked.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite.binding import parse_assembly, parse_bitcode
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from tapegpt.kernels.compile.cpu import MATRIX_UNIT, VECTOR_BYTES
from tapegpt.system.atomic_files import read
from tapegpt.system.ownership import check_folder

# The settings in numba.config that change the machine code.
SETTINGS = [
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "DEBUG_JIT",
    "DEBUG_NRT",
    "EXTEND_VARIABLE_LIFETIMES",
    "FULL_TRACEBACKS",
    "LLVM_REFPRUNE_FLAGS",
    "LLVM_REFPRUNE_PASS",
    "LOOP_VECTORIZE",
    "OPT",
    "SLP_VECTORIZE",
    "USING_SVML",
]

UNUSED_DAYS = 30
LARGEST = 1 << 28  # bytes of a file; kernels have less than a hundredth
NO_BITCODE = parse_assembly("").as_bitcode()

_said: set[str] = set()


def _say_once(level: int, message: str, *details: object) -> None:
    if message not in _said:
        _said.add(message)
        logging.getLogger("tapegpt").log(level, message, *details)


def source_files(folder: Traversable, above: str = "") -> dict[str, bytes]:
    """The modules below a folder, by name: in a zip file too, compiled ones without sources too."""
    found = {}
    for entry in folder.iterdir():
        name = above + entry.name
        if name.endswith((".py", ".pyc")):
            found[name] = entry.read_bytes()
        elif entry.is_dir() and entry.name != "__pycache__":
            found |= source_files(entry, name + "/")
    return found


def source_digest(sources: Mapping[str, bytes]) -> str:
    """Hexadecimal digest of modules, and of what compiles them."""
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    return hashlib.sha256(repr((versions, sorted(sources.items()))).encode()).hexdigest()


PACKAGE = __name__.rsplit(".", 2)[0]
SOURCES = source_files(files(PACKAGE))
DIGEST = source_digest(SOURCES)


def belongs_here(function: Callable[..., Any]) -> bool:
    """Whether the digest covers this function."""
    return bool(SOURCES) and function.__module__.startswith(f"{PACKAGE}.")


def _home() -> Path:
    home = Path.home()
    if not home.is_absolute():
        raise RuntimeError(f"the home directory {str(home)!r} is not absolute")
    return home


def _user_cache_directory() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData/Local")
    if sys.platform == "darwin":
        return _home() / "Library/Caches"
    directory = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # As its specification has it, a relative one is ignored.
    return directory if directory.is_absolute() else _home() / ".cache"


def cache_directory() -> Path:
    """Where the compiled kernels of this package lie.

    Raises RuntimeError where the user has no home directory and NUMBA_CACHE_DIR is not set, and
    OSError where it is relative to a folder that is gone.
    """
    return Path(config.CACHE_DIR or _user_cache_directory()).absolute() / "tapegpt" / DIGEST[:16]


def _make_private(folder: Path) -> None:
    """Create a folder, and what of those above is missing, for this user alone."""
    if not folder.parent.exists():
        _make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _make(directory: Path) -> None:
    """Create the cache directory, and remove those of other versions that nobody uses.

    Raises PermissionError where others can write.
    """
    _make_private(directory.parent)
    check_folder(directory.parent)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        check_folder(directory)
        return
    oldest = time.time() - UNUSED_DAYS * 24 * 60 * 60
    for other in directory.parent.glob("[0-9a-f]" * len(directory.name)):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < oldest:
                shutil.rmtree(other)


def _write(path: Path, data: bytes) -> None:
    """Write the file in one step: other processes see all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _identity(function: Callable[..., Any]) -> tuple[object, ...]:
    """What tells a kernel from all others of one DIGEST: its place and what it closes over.

    A jitted function or an intrinsic that is closed over stands for its own identity, because its
    pickled form differs from process to process.
    """
    closure = []
    for cell in function.__closure__ or ():
        value = cell.cell_contents
        inner = getattr(value, "py_func", getattr(value, "_defn", None))
        closure.append(value if inner is None else _identity(inner))
    place = (function.__module__, function.__qualname__, function.__code__.co_firstlineno)
    return (*place, tuple(closure))


def _reduced(result: CompileResult) -> tuple[Any, ...]:
    """What `_rebuilt` makes a compiled kernel of."""
    module = result.library._get_module_for_linking()
    defined = [
        symbol.name
        for symbols in (module.functions, module.global_variables)
        for symbol in symbols
        if not symbol.is_declaration
    ]
    (name, kind, (machine_code, bitcode)), *others = result._reduce()
    return (name, kind, (machine_code, NO_BITCODE)), bitcode, defined, others


def _rebuilt(
    target_context: Any, library: Any, bitcode: bytes, defined: list[str], others: list[Any]
) -> CompileResult:
    """A compiled kernel that can be called; its LLVM module waits for a kernel that inlines it.

    Numba parses the module at once, to find the symbols that it defines: a third of the time that
    loading a kernel takes.
    """
    target_context.codegen()._engine._defined_symbols.update(defined)  # or they have no address
    result: CompileResult = CompileResult._rebuild(target_context, library, *others)
    result.library._get_module_for_linking = cache(lambda: parse_bitcode(bitcode))
    return result


class KernelCache(_Cache):
    """The cache as Numba sees it, for one kernel.

    identity: what tells a kernel from all others that is no function in a file of this package.
    """

    def __init__(self, function: Callable[..., Any], identity: tuple[object, ...] | None = None):
        self._function = function
        self._identity = identity

    @property
    def cache_path(self) -> str:
        return str(cache_directory())

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        # Numba's cache would refresh the context first, which imports what only compiling needs,
        # and compiling does that itself: half the time of a start from the cache.
        with self._guarded():
            result = self._load(signature, target_context)
            if result is not None:
                return result
        _say_once(logging.INFO, "compiling kernels that the cache does not have yet")
        return None

    def save_overload(self, signature: Any, result: CompileResult) -> None:
        with self._guarded():
            self._save(signature, result)

    def enable(self) -> None:
        """Always on."""

    def disable(self) -> None:
        """Always on."""

    def flush(self) -> None:
        """Nothing to do: a file is replaced when its kernel is compiled again."""

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        # Damaged pickles raise almost anything, and no failure here may stop a run.
        try:
            yield
        except Exception as error:
            try:
                directory = self.cache_path
            except (RuntimeError, OSError):
                directory = "(no directory for it)"
            _say_once(
                logging.WARNING,
                "cannot use the kernel cache %s: %s: %s; compiling without it. If this comes back,"
                " delete that directory or set NUMBA_CACHE_DIR to one that you alone can write to",
                directory,
                type(error).__name__,
                error,
            )

    def _path_and_key(self, signature: Any, target_context: Any) -> tuple[Path, tuple[Any, ...]]:
        settings = [repr(getattr(config, name, None)) for name in SETTINGS]
        cpu = (*target_context.codegen().magic_tuple(), VECTOR_BYTES, MATRIX_UNIT)
        key = (self._identity or _identity(self._function), signature, cpu, settings)
        text = repr(key)
        digest = hashlib.sha256(text.encode()).hexdigest()
        # Settings are float64 whatever arrays hold.
        dtype = "float32" if "float32" in text else "float64"
        return cache_directory() / f"{self._function.__name__}-{dtype}-{digest[:16]}.nbc", key

    def _load(self, signature: Any, target_context: Any) -> CompileResult | None:
        path, key = self._path_and_key(signature, target_context)
        try:
            check_folder(path.parent)
            data = read(path, LARGEST, private=True)
        except FileNotFoundError:
            return None
        checksum, pickled = data[:32], data[32:]
        # Unchecked, a flipped bit in the machine code would crash every run from now on.
        if hashlib.sha256(pickled).digest() != checksum:
            raise ValueError(f"{path.name} is damaged")
        stored_key, reduced = pickle.loads(pickled)
        if stored_key != key:
            return None
        with contextlib.suppress(OSError):
            os.utime(path.parent)
        return _rebuilt(target_context, *reduced)

    def _save(self, signature: Any, result: CompileResult) -> None:
        if result.library.has_dynamic_globals:
            raise ValueError(f"{self._function.__qualname__} holds addresses of this process")
        path, key = self._path_and_key(signature, result.target_context)
        pickled = dumps((key, _reduced(result)))
        _make(path.parent)
        _write(path, hashlib.sha256(pickled).digest() + pickled)


def is_missing(kernel: Any, dtype: str) -> bool:
    """Whether the cache holds no signature of a kernel with arrays of a type, and can take one."""
    try:
        directory = cache_directory()
        _make(directory)
        with TemporaryFile(dir=directory):
            return not any(directory.glob(f"{kernel.__name__}-{dtype}-*.nbc"))
    except (OSError, RuntimeError):
        return False
