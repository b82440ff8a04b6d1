"""The files of a corpus: plain or compressed (.gz), and standard input."""

import gzip
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO

from tapegpt.errors import TapegptError

STANDARD_INPUT = Path("-")
PIECE = 1 << 22  # bytes that are read at a time

# A file, how many bytes of it were read, and how many there are: 0 where nobody knows.
Watcher = Callable[[Path | Traversable, int, int], None]


def default_corpus() -> Traversable:
    """The list of given names that ships with the package, which may lie in a zip file."""
    return files("tapegpt.data") / "names.txt"


def pieces(path: Path | Traversable, remedy: str, watch: Watcher | None = None) -> Iterator[bytes]:
    """The bytes of a file, decompressed where its name ends in .gz, some at a time.

    Raises `TapegptError`, which ends in the remedy, where it cannot be read.
    """
    try:
        with _opened(path, remedy) as file:
            whole = size_of(path)
            stream = gzip.GzipFile(fileobj=file) if is_compressed(path) else file
            done = 0
            while piece := stream.read(PIECE):
                yield piece
                done = file.tell() if is_compressed(path) else done + len(piece)
                if watch is not None:
                    watch(path, done, whole)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refusal(path, f"is not a whole .gz file: {error}", remedy) from None
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}", remedy) from None
    except ValueError as error:  # a NUL in the path
        raise refusal(path, f"cannot be read: {error}", remedy) from None


def is_compressed(path: Path | Traversable) -> bool:
    """Whether the name says so."""
    return path.name.endswith(".gz")


def size_of(path: Path | Traversable) -> int:
    """The bytes of a file as it lies on the disk; 0 where nobody knows."""
    if path == STANDARD_INPUT or not isinstance(path, Path):
        return 0
    return path.stat().st_size


def refusal(path: Path | Traversable, problem: str, remedy: str) -> TapegptError:
    """The error of a corpus that cannot be used."""
    return TapegptError(f"corpus {str(path)!r} {problem}: {remedy}")


def _opened(path: Path | Traversable, remedy: str) -> AbstractContextManager[IO[bytes]]:
    if path == STANDARD_INPUT:
        return nullcontext(sys.stdin.buffer)
    if isinstance(path, Path):  # what ships in a zip file is ours
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise refusal(path, "is a directory", remedy)
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise refusal(path, "is not a regular file", remedy)
    return path.open("rb")
