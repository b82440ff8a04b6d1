"""Who can write where: what is executed is read only from places that nobody else can change.

Nobody else is everybody but this user and root. A folder is as safe as the one that it lies in, so
every level is looked at, from the root of the file system on. Permissions of Windows, whose user
folders are private, are not looked at.
"""

import errno
import os
import stat
import sys
from pathlib import Path

if sys.platform != "win32":
    import grp
    import pwd

MOST_LINKS = 40  # on the way to a folder, as Linux has it


def check_folder(folder: Path) -> None:
    """Raise `PermissionError` if somebody else can change what the path stands for, or holds.

    Links are followed, and their owners count. In folders with a sticky bit, such as /tmp, others
    can add but not replace. `OSError` where there is no such folder.
    """
    if sys.platform == "win32":
        return
    left, at, links = list(reversed(folder.absolute().parts)), os.sep, 0
    while left:
        part = left.pop()
        path = os.sep if part.startswith(os.sep) else os.path.join(at, part)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            _check_owner(status, path)
            left.extend(reversed(Path(os.readlink(path)).parts))
            continue
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        _check_owner(status, path)
        if not status.st_mode & stat.S_ISVTX:
            _check_mode(status, path)
        at = path


def check_file(status: os.stat_result, path: str) -> None:
    """Raise `PermissionError` if somebody else has made the open file, or can write to it."""
    if sys.platform == "win32":
        return
    _check_owner(status, path)
    _check_mode(status, path)


def _check_owner(status: os.stat_result, path: str) -> None:
    # In a container root's files can appear as nobody's: then the root folder does, too.
    if status.st_uid not in (os.geteuid(), 0, os.stat(os.sep).st_uid):
        raise PermissionError(f"{path!r} belongs to somebody else (user {status.st_uid})")


def _check_mode(status: os.stat_result, path: str) -> None:
    if status.st_mode & stat.S_IWOTH:
        raise PermissionError(f"everybody can write to {path!r}")
    if status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
        raise PermissionError(f"others can write to {path!r} (group {status.st_gid})")


def _is_private(group: int) -> bool:
    """Whether it is this user's own group, or root's: many systems give every user one."""
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return entry.gr_name in (user, "root") and set(entry.gr_mem) <= {user, "root"}
