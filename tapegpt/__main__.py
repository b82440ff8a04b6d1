"""python -m tapegpt, which as a console command is tapegpt."""

import gc
import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers know it: to import typing takes as long as the help
if TYPE_CHECKING:
    from types import FrameType

# Imports make many objects that stay. To look among them for garbage takes a tenth of a start.
OBJECTS_BETWEEN_COLLECTIONS = 500_000


def _leave(number: int, frame: "FrameType | None") -> None:
    """Exit at once: in the middle of an import, an exception can come out as another one."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(128 + number)


def main() -> int:
    """Run one command; returns the exit code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)

    from tapegpt import cli

    code = cli.main()
    _leave_at_once(code)
    return code


def _leave_at_once(code: int) -> None:
    """Exit without taking the interpreter down, which takes half a second: Numba has many objects.

    Nothing is lost. Files are closed where they were written, threads and processes have ended with
    the command, and standard streams are flushed here. Where one cannot be, the usual way out says
    so; so does an exit by an exception, such as that of a signal.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        return
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
