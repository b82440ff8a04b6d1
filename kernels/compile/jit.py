"""The decorators that every kernel wears."""

import gc
import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numba
from numba import types
from numba.core.sigutils import normalize_signature

# Relative, so that a copy of this folder is a package with a cache of its own.
from .kernel_cache import KernelCache, belongs_here

Function = Callable[..., Any]

# contract lets LLVM form fused multiply-adds; reassoc, nsz and arcp let it reorder sums, ignore
# the sign of zero and multiply by reciprocals. nnan and ninf are left out: they would silently
# remove the checks for NaN. error_model: division by zero gives infinity, as in NumPy.
# Bounds are checked where NUMBA_BOUNDSCHECK=1. No kernel is called from C.
FLAGS = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
    "nogil": True,
    "_nrt": False,
    "no_cfunc_wrapper": True,
}


class LazyKernel:
    """A function that Numba compiles. What Numba keeps for it is made when it is first used.

    A start from the cache calls a tenth of all kernels; the others would cost it 0.15 ms each.
    """

    def __init__(self, source: Callable[[], Function], decorate: Callable[[Function], Any]):
        self._source = source
        self._decorate = decorate

    @cached_property
    def py_func(self) -> Function:
        return self._source()

    @cached_property
    def dispatcher(self) -> Any:
        return self._decorate(self.py_func)

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher(*arguments)

    def __reduce__(self) -> Any:
        return self.dispatcher.__reduce__()  # copies and pickles are Numba's

    def __getattr__(self, name: str) -> Any:
        # Numba takes this for its own dispatcher, by _numba_type_ and targetoptions.
        return getattr(self.dispatcher, name)


def jit(function: Function) -> LazyKernel:
    """Compile `function` at its first call with new argument types, or take it from the cache.

    Only kernels of this package are cached; its digest says nothing about functions elsewhere. A
    kernel may depend on the sources, the CPU and what it closes over, never on anything else that
    may differ between processes, such as an environment variable.
    """
    return jit_made(lambda: function)


def jit_made(make: Callable[[], Function]) -> LazyKernel:
    """As `jit`, for a function that is made when its kernel is first used."""
    return LazyKernel(make, _dispatcher)


def _dispatcher(function: Function) -> Any:
    kernel: Any = numba.njit(**FLAGS)(function)
    _take_no_literals(kernel)
    _compile_faster(kernel)
    if belongs_here(function):
        kernel._cache = KernelCache(function)
    return kernel


def _take_no_literals(kernel: Any) -> None:
    """Numba would compile a kernel once more for every constant that another one passes to it."""
    template = kernel.get_call_template

    def get_call_template(args: Iterable[Any], kws: dict[str, Any]) -> Any:
        plain = {name: types.unliteral(kind) for name, kind in kws.items()}
        return template(tuple(types.unliteral(kind) for kind in args), plain)

    kernel.get_call_template = get_call_template


def _compile_faster(kernel: Any) -> None:
    """Compile no wrapper for Python where only kernels can call, and collect no garbage meanwhile.

    Compiling makes millions of small objects: the collector would look at them again and again.
    """
    compile_kernel = kernel.compile

    def compile(signature: Any) -> Any:
        arguments, _ = normalize_signature(signature)
        kernel.targetoptions["no_cpython_wrapper"] = any(map(_holds_pointer, arguments))
        collects = gc.isenabled()
        gc.disable()
        try:
            return compile_kernel(signature)
        finally:
            if collects:
                gc.enable()

    kernel.compile = compile


def _holds_pointer(kind: Any) -> bool:
    """Whether arguments of this type are pointers, which Python has none of, or tuples of some."""
    return isinstance(kind, types.CPointer) or (
        isinstance(kind, types.BaseTuple) and any(map(_holds_pointer, kind))
    )


def inlined(function: Function) -> LazyKernel:
    """As `jit`, but Numba pastes the body into the kernels that call it: never compiled alone."""
    return inlined_made(lambda: function)


def inlined_made(make: Callable[[], Function]) -> LazyKernel:
    """As `inlined`, for a function that is made when its kernel is first used."""
    return LazyKernel(make, lambda function: numba.njit(inline="always", **FLAGS)(function))


def jit_source(
    source: str,
    name: str,
    names: Mapping[str, Any],
    identity: tuple[object, ...] | None = (),
) -> Function:
    """Compile the function that generated source defines, cached by the text of the source.

    names: what it uses, modules and kernels of this package. identity: what tells other things
    that it uses, such as functions of a user, from all others; None: they cannot be told.
    """
    digest = hashlib.sha256(repr((source, identity)).encode()).hexdigest()[:16]
    scope = {"__name__": __name__, **names}
    exec(compile(source, f"<{name}>", "exec"), scope)
    function = scope[name]
    # Compiled code of two functions of one name could not be linked together.
    function.__name__ = function.__qualname__ = f"{name}_{digest}"
    kernel: Any = numba.njit(**FLAGS)(function)
    _compile_faster(kernel)
    if identity is not None:
        kernel._cache = KernelCache(function, ("source", source, tuple(names), identity))
    return kernel  # type: ignore[no-any-return]


def jit_users(function: Function) -> Function:
    """Compile a function of a user into the kernels that call it, with the flags of kernels."""
    kernel: Function = numba.njit(forceinline=True, **FLAGS)(function)
    return kernel
