"""python -m tapegpt, which as a console command is tapegpt."""

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

# Imports make many objects that stay. To look among them for garbage takes a tenth of a start.
OBJECTS_BETWEEN_COLLECTIONS = 500_000


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit at once: in the middle of an import, an exception can come out as another one."""
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(128 + number)


def main() -> int:
    """Run one command; returns the exit code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)

    from tapegpt import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
