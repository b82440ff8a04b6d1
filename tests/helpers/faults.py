"""A disk that fails at a call of one's choice: every write of the program is tried on it."""

import builtins
import errno
import io
import os

CODES = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO]


class ShortFile:
    """A file that takes half of what it is given before the other half can fail."""

    def __init__(self, file, fault):
        self.file, self.fault = file, fault

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.fault()
        self.file.write(data[len(data) // 2 :])
        return len(data)


class Faults:
    """Makes one of the calls to the system about files below `folder` fail: number `failing`."""

    def __init__(self, monkeypatch, folder, code, failing):
        self.folder, self.code, self.failing, self.calls = folder, code, failing, 0
        for name in ("replace", "open", "mkdir", "rmdir", "unlink", "listdir", "utime"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (self.fault(), fsync(descriptor)))
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self.open)

    def fault(self):
        self.calls += 1
        if self.calls - 1 == self.failing:
            raise OSError(self.code, os.strerror(self.code))

    def concerns(self, path):
        return not isinstance(path, int) and os.path.abspath(path).startswith(str(self.folder))

    def wrap(self, function):
        def wrapped(path, *args, **kwargs):
            if self.concerns(path):
                self.fault()
            return function(path, *args, **kwargs)

        return wrapped

    def open(self, path, mode="r", *args, real=open, **kwargs):
        if "r" in mode or not self.concerns(path):
            return real(path, mode, *args, **kwargs)
        self.fault()
        return ShortFile(real(path, mode, *args, **kwargs), self.fault)
