"""The signals that ask a training to stop: it finishes the step and saves."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FORCE = (signal.SIGINT, signal.SIGTERM)  # the second of these kills
# A terminal that is closed, a connection that drops: often two at once. Windows has none.
HANG_UP = getattr(signal, "SIGHUP", None)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that the first stop signal appends its number to; SIGINT or SIGTERM after it kills.

    Only the main thread hears signals: in another one the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in previous:
            signal.signal(other, signal.SIG_DFL if other in FORCE else signal.SIG_IGN)

    previous = {number: signal.getsignal(number) for number in FORCE}
    # nohup has it ignored, so that a training outlives its terminal.
    if HANG_UP is not None and signal.getsignal(HANG_UP) != signal.SIG_IGN:
        previous[HANG_UP] = signal.getsignal(HANG_UP)
    try:
        for number in previous:
            signal.signal(number, note)
        with _leave_at_the_second():
            yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _leave_at_the_second() -> Iterator[None]:
    """Exit at the second stop signal, even in the middle of a long call of a kernel.

    Python runs no handler before such a call returns, but the system's has written the signal's
    number to a socket by then, and kernels let other threads run.
    """
    outlet, inlet = socket.socketpair()  # Windows wants no pipe here
    inlet.setblocking(False)
    others = signal.set_wakeup_fd(inlet.fileno())

    def watch() -> None:
        stopping = False
        while byte := outlet.recv(1):
            if stopping and byte[0] in FORCE:
                os._exit(128 + byte[0])
            stopping = stopping or byte[0] in FORCE or byte[0] == HANG_UP

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(others)
        inlet.close()  # which ends the watcher
        watcher.join()
        outlet.close()
