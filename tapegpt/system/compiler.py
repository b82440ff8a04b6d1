"""Numba as the environment sets it up, found wanting before it is asked to compile."""

import os
import warnings
from contextlib import suppress

from tapegpt.errors import TapegptError


def require_compiler() -> None:
    """Import Numba; `TapegptError`, one line, where it or its environment variables are of no use.

    Numba itself shows a traceback for each variable that it cannot read, and goes on without.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Environment variable", RuntimeWarning)
            from numba.core import config
    except ImportError as error:
        raise TapegptError(f"cannot import Numba: {error}: install tapegpt with pip") from error
    except Exception as error:
        problem = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise TapegptError(f"Numba: {problem}: unset {' '.join(_variables())}") from error
    if config.DISABLE_JIT:
        raise TapegptError(
            "NUMBA_DISABLE_JIT is set, but vectors exist only in compiled code: unset it"
        )
    if config.CPU_NAME or config.CPU_FEATURES:
        problem = _said_of_target(config.CPU_NAME or "", config.CPU_FEATURES or "")
        if problem:
            raise TapegptError(
                f"NUMBA_CPU_NAME or NUMBA_CPU_FEATURES: {problem}: correct or unset them"
            )


def _variables() -> list[str]:
    return sorted(name for name in os.environ if name.startswith("NUMBA_"))


def _said_of_target(cpu: str, features: str) -> str:
    """What LLVM says of a processor and features that it does not know; nothing of others.

    It says so on the process's own stderr, once for every use, and compiles for another.
    """
    from llvmlite import binding

    binding.initialize_native_target()
    said = b""
    with suppress(OSError):  # stderr is closed, or files are few: LLVM may say it later
        outlet, inlet = os.pipe()
        stderr = os.dup(2)
        try:
            os.dup2(inlet, 2)
            target = binding.Target.from_default_triple()
            target.create_target_machine(cpu=cpu, features=features)
        finally:
            os.dup2(stderr, 2)
            for descriptor in (inlet, stderr):
                os.close(descriptor)
            said = os.read(outlet, 200)
            os.close(outlet)
    return said.decode(errors="replace").partition("\n")[0].partition(" (")[0]
