"""The folder of a run: what --out may hold, and that nothing of value there is lost.

A new training refuses a folder that holds a run, or anything else. Where no --out is given, an
earlier run in the folder out is moved aside under a numbered name, at the new one's first save:
`sample` and scripts go on finding the latest run where it always was, and need no rule for which
of many folders that is. With --overwrite the new run takes the earlier one's place once it is
finished, or has been evaluated; until then it is saved under a numbered name.

The folder best in it belongs to the run: it is locked with it and never followed if it is a link.
"""

import itertools
import os
import re
import shlex
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from tapegpt.checkpoint import (
    OURS,
    Run,
    RunError,
    discard,
    load,
    load_manifest,
    looks_like_a_run,
    save,
)
from tapegpt.errors import TapegptError, UsageError
from tapegpt.runs.history import HISTORY
from tapegpt.system.atomic_files import NEW, locked, sync

DEFAULT = Path("out")
BEST = "best"  # the folder, beside the last state of a run, of the one with the least val_loss


class RunFolder:
    """Where one training is saved; locked until the block that opened it ends."""

    def __init__(self, out: Path | None, overwrite: bool, resume: bool) -> None:
        self.path = self._home = DEFAULT if out is None else out
        self.aside: Path | None = None  # where the earlier run lies now
        self._moves = out is None and not overwrite
        self._overwrite, self._resume = overwrite, resume
        self._earlier = False  # whether the new run has still to take the place of another
        self._held = ExitStack()
        self._locked: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    @property
    def best(self) -> Path:
        """The folder of the best state."""
        return self.path / BEST

    @property
    def is_apart(self) -> bool:
        """Whether the new run has still to take the place of an earlier one."""
        return self._earlier

    def check(self) -> None:
        """Refuse a folder whose contents a new run must not replace; lock it, if it is there."""
        try:
            self._check_owner()
            if self._home.is_dir():
                self._lock(self._home)
                self._check_contents()
        except OSError as error:  # of a name that is too long, say
            raise _cannot_write(self._home, error) from error

    def _check_contents(self) -> None:
        names = sorted(_names(self._home))
        if self._resume or not names:
            return
        is_run = looks_like_a_run(self._home)
        if self._overwrite or (self._moves and (is_run or _are_remains(names))):
            self._earlier = True
            if self._overwrite and not _may_lose_best(self._home):
                raise self._not_its_best()
            return
        if is_run:
            problem = "a run: choose --resume to go on, another --out, or --overwrite to replace it"
        else:
            problem = f"{names[0]!r}: choose another --out, or --overwrite to save a run beside it"
        raise TapegptError(f"--out {str(self._home)!r} holds {problem}")

    def _not_its_best(self) -> RunError:
        return RunError(
            f"{str(self._home / BEST)!r} holds another run than the best state of that in"
            f" {str(self._home)!r}: move it away, or choose another --out"
        )

    def _check_owner(self) -> None:
        """The best state of a run is that run's."""
        real = Path(os.path.realpath(self._home))
        if real.name != BEST:
            return
        if looks_like_a_run(real.parent):
            raise TapegptError(
                f"--out {str(self._home)!r} is the best state of the run in"
                f" {str(self._home.parent)!r}: choose another --out, or copy it there to go on"
                " with it"
            )
        if real.parent.is_dir():
            self._lock(real.parent)

    def load(self) -> Run:
        """The run to go on with. Raises `RunError`, also where its best state is another's."""
        run = load(self._home)
        if run.training.val_fraction == 0:
            return run
        self._check_best()
        best = None
        if looks_like_a_run(self._home / BEST):
            best = load_manifest(self._home / BEST)
            if not _belongs(best, run):
                raise self._not_its_best()
        if run.best_loss is not None and (best is None or best.best_loss != run.best_loss):
            # Lost, or of a later evaluation, which will come once more.
            is_later = best is not None and best.step > run.step
            if not is_later:
                return replace(run, best_loss=None if best is None else best.best_loss)
        return run

    def prepare(self, evaluates: bool) -> None:
        """Find out before training, not after it, that the run cannot be saved there."""
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            _try(self._home)
            if self._earlier:
                _try(self._home.parent)
        except OSError as error:
            raise _cannot_write(self._home, error) from error
        if not self._earlier:
            self.check()  # another training may have ended since the first look
        self._lock(self._home)
        if evaluates:
            self._check_best()

    def _check_best(self) -> None:
        best, problem = self._home / BEST, None
        if self._earlier and self._moves:  # it goes with the earlier run
            return
        if best.is_symlink():
            problem = "is a link, which is not followed"
        elif best.is_dir():
            self._lock(best)
            try:
                _try(best)
            except OSError as error:
                problem = f"cannot be written: {error.strerror}"
        elif best.exists():
            problem = "is no folder"
        if problem is not None:
            raise TapegptError(
                f"{str(best)!r}, where the best state is kept, {problem}: move it away, or choose"
                " another --out"
            )

    def check_rescue(self, rescue: Path) -> None:
        """Refuse another folder to save in that holds anything, or is this one."""
        if os.path.realpath(rescue) in map(os.path.realpath, (self._home, self._home / BEST)):
            raise UsageError(f"--rescue {str(rescue)!r} is --out: choose another folder")
        with RunFolder(rescue, overwrite=False, resume=False) as folder:
            folder.check()

    def takes(self, path: Path) -> bool:
        """Whether a run there has, or will have, a file of this name; or it is one by another."""
        real = Path(os.path.realpath(path))
        for folder in (self._home, self._home / BEST):
            place = Path(os.path.realpath(folder))
            if real == place or (
                real.parent == place and (real.name == BEST or re.fullmatch(OURS, real.name))
            ):
                return True
            with suppress(OSError):
                for name in _names(folder):
                    if re.fullmatch(OURS, name) and os.path.samefile(path, folder / name):
                        return True
        return False

    def moves(self, path: Path) -> bool:
        """Whether the file lies where the earlier run is moved away."""
        home = Path(os.path.realpath(self._home))
        return self._earlier and self._moves and home in Path(os.path.realpath(path)).parents

    def save(self, run: Run, worthy: bool) -> None:
        """Save the last state. worthy: of taking the place of an earlier run, where asked to."""
        if not self._earlier:
            save(run, self.path)
        elif self._moves or worthy:
            self._replace(run)
        else:
            if self.path == self._home:
                self.path = _numbered(self._home)
            save(run, self.path)

    def save_best(self, run: Run) -> None:
        """Save the best state. The last must not say that there is one before there is."""
        if self._earlier:
            self._replace(replace(run, best_loss=None))
        if self.best.is_symlink():
            raise RunError(f"cannot save in {str(self.best)!r}: it is a link: move it away")
        save(run, self.best)

    def _replace(self, run: Run) -> None:
        """Make the new run the run of the folder, and the earlier one that of another, or none."""
        if self._moves:
            self._swap(run)
        else:
            save(run, self._home)
            if not self.best.is_symlink():
                discard(self._home / BEST)
            if self.path != self._home:
                discard(self.path)
            self.path = self._home
        self._earlier = False

    def _swap(self, run: Run) -> None:
        home, fresh = self._home, self._home.with_name(self._home.name + NEW)
        discard(fresh)  # left by a process that was killed
        try:
            save(run, fresh)
        except RunError:
            discard(fresh)
            raise
        try:
            self._lock(fresh)
            aside = _numbered(home)
            os.rename(home, aside)
            try:
                os.rename(fresh, home)
            except OSError:
                os.rename(aside, home)
                raise
            sync(home.parent)
        except OSError as error:
            discard(fresh)
            raise RunError(
                f"cannot move the run in {str(home)!r} aside: {error.strerror}: check permissions"
                " there, or choose an --out"
            ) from error
        self.aside = aside

    def _lock(self, folder: Path) -> None:
        """Keep other processes from saving there; once more does no harm."""
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        if key in self._locked:
            return
        try:
            self._held.enter_context(locked(folder))
        except BlockingIOError as error:
            raise TapegptError(
                f"another process is training in --out {str(folder)!r}: wait for its end, or"
                " choose another --out"
            ) from error
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self._locked.add(key)


def how_to_go_on(folder: Path, *flags: str) -> str:
    """The command that goes on with the run there."""
    return shlex.join(["tapegpt", "train", "--resume", "--out", str(folder), *flags])


def best_of(folder: Path) -> Path:
    """The folder of the best state of the run in `folder`; that itself if none was kept."""
    best = folder / BEST
    try:
        if best.is_symlink() or not looks_like_a_run(best):
            return folder
        last = load_manifest(folder)
    except (OSError, RunError):  # what is wrong is said where the run itself is loaded
        return folder
    with suppress(RunError):  # or the best one
        if last.best_loss is None or not _belongs(load_manifest(best), last):
            return folder
    return best


def _belongs(best: Run, last: Run) -> bool:
    """Whether these can be states of one training."""
    same = ("corpus_digest", "characters", "model")
    return best.training.seed == last.training.seed and all(
        getattr(best, name) == getattr(last, name) for name in same
    )


def _may_lose_best(folder: Path) -> bool:
    """Whether best, in a folder that is to be overwritten, is no run beside that in the folder."""
    best = folder / BEST
    if best.is_symlink() or not looks_like_a_run(best):
        return not best.is_symlink()
    if not looks_like_a_run(folder):
        return False
    try:
        return _belongs(load_manifest(best), load_manifest(folder))
    except RunError:  # of a damaged run nothing is known, and the user wants it gone
        return True


def _names(folder: Path) -> list[str]:
    """What lies in the folder, but for what a killed save has left."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [
        name
        for name in names
        if not (name.endswith(NEW) and re.fullmatch(OURS, name))
        and not (name == BEST and _is_empty(folder / name))
    ]


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not os.listdir(folder)


def _are_remains(names: Iterable[str]) -> bool:
    """Whether these are names of what a run leaves if its run.json goes."""
    return all(name == BEST or re.fullmatch(rf"tensors-.*|{HISTORY}", name) for name in names)


def _numbered(folder: Path) -> Path:
    """The first name with a number that is free."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _try(folder: Path) -> None:
    """Raise the `OSError` of a folder that no file can be made in."""
    with TemporaryFile(dir=folder):
        pass


def _cannot_write(out: Path, error: OSError) -> TapegptError:
    problem = f"cannot write --out {str(out)!r}: {error.strerror}: choose another folder"
    return TapegptError(problem)
