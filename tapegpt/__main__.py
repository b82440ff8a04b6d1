"""python -m tapegpt"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit at once: in the middle of an import, an exception can come out as another one."""
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(128 + number)


def _main() -> int:
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)

    from tapegpt.cli import main

    return main()


sys.exit(_main())
