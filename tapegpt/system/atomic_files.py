"""Files that survive a crash while they are written and are not trusted when they are read."""

import errno
import os
import re
import stat
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile

from tapegpt.system.host import bytes_available
from tapegpt.system.ownership import check_file

if sys.platform != "win32":
    import fcntl

NEW = ".new"  # ends the name of a file that is not finished
# Where the platform can: follow no link, and do not wait for a pipe's other end.
READ_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)


def write(folder: Path, contents: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    """Replace files of `folder`, which is made if need be, each at one stroke and in this order.

    contents: by name, the pieces of a file, which are written one after the other. Whenever the
    process dies, each file is the old one or the new one, and on the disk before the next is
    replaced. On `OSError` the files that were not yet replaced are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder, contents)


def write_one(path: Path, data: bytes) -> None:
    """Replace a file at one stroke; a link or a device stays, and gets the bytes."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
    else:
        _replace(path.parent, {path.name: [data]})


def check_writable(path: Path) -> None:
    """Raise now the `OSError` that `write_one` would raise later."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not path.exists() or path.is_file():
        with TemporaryFile(dir=path.parent):
            pass


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from locking the folder; `BlockingIOError` if one has.

    The lock is the system's own, on the folder itself: it leaves no file behind, and a process that
    dies has let go of it. Where the system or the disk knows no such locks, there is none.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            # Whoever held the lock has just moved the folder away.
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        yield
    finally:
        os.close(descriptor)


def _replace(folder: Path, contents: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    # Not as a Path, which interns its parts: names that come and go make Python's table grow.
    paths = {name: os.path.join(folder, name) for name in contents}
    try:
        for name, pieces in contents.items():
            _stage(paths[name] + NEW, pieces)
        for path in paths.values():
            os.replace(path + NEW, path)
            sync(folder)
    except BaseException:
        for path in paths.values():
            with suppress(OSError):
                os.unlink(path + NEW)
        raise


def move_aside(path: Path) -> Path:
    """Give a file, m.jsonl say, the first name m-1.jsonl, m-2.jsonl, ... that is free.

    Returns that. Of a link the file itself is renamed.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    os.rename(path, aside)
    return aside


def delete(folder: Path, pattern: str, keep: Container[str]) -> None:
    """Delete the files whose name matches, but for some; one that cannot be deleted stays."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if re.fullmatch(pattern, entry.name) and entry.name not in keep:
                entry.unlink()


def read(path: Path | str, limit: int, least: int = 0, private: bool = False) -> bytes:
    """The bytes of a regular file.

    `ValueError` if it is none, or holds more than `limit` bytes or fewer than `least`;
    `MemoryError` if memory has no room for it; `PermissionError` if it is to be private and others
    can write to it. Any of them comes before anything is read.
    """
    with open(path, "rb", opener=lambda name, _: os.open(name, READ_FLAGS)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if private:
            check_file(status, os.fspath(path))
        if status.st_size > limit:
            raise ValueError(f"it holds {status.st_size} bytes, more than the {limit} it can need")
        if status.st_size < least:
            raise ValueError(f"it holds {status.st_size} bytes, and its settings need {least}")
        if 2 * status.st_size > bytes_available():  # its bytes, and what is made of them
            raise MemoryError
        return file.read(status.st_size)


def _stage(path: str, pieces: Iterable[bytes | memoryview]) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # left by a process that was killed, or a link to elsewhere
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Have what was renamed in the folder on the disk."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
