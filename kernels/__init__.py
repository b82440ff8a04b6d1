"""The jitted machine: kernels on flat arrays, and nothing that Python would notice."""

from tapegpt.system.compiler import require_compiler

if __name__ != "tapegpt.kernels":
    # Under a second name every kernel would exist, and be compiled, twice.
    raise ImportError(f"import tapegpt.kernels, not {__name__}")

require_compiler()
