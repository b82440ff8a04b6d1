"""How an operation is declared: its arguments, its kernels, and what follows from them.

The file of an operation names its arguments once, as the fields of a NamedTuple in the order in
which they lie in memory. Kernels read them by name:

    class Args(NamedTuple):
        rows: Rows
        width: Size
        x: Differentiable

    args, grads_of = readers(Args)      # args(operands, at).x, grads_of(operands, back).dx

The readers are generated as flat source and inlined: they cost what the bare indices would.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Annotated, Any, NamedTuple, get_type_hints

from tapegpt.kernels.compile.jit import inlined_made

Kernel = Callable[..., Any]


class Kind(Enum):
    """What an argument is to whoever records, replays or rearranges a program."""

    NUMBER = auto()
    PARAMETER = auto()
    DIFFERENTIABLE = auto()
    ROOM = auto()
    GRADIENT_ROOM = auto()
    SHARED_ROOM = auto()
    REST = auto()


Rows = Annotated[int, Kind.NUMBER]  # how many, or BATCH for those of the batch range
Size = Annotated[int, Kind.NUMBER]
Slot = Annotated[int, Kind.NUMBER]  # where a run of `inputs` begins
ScalarNode = Annotated[int, Kind.NUMBER]
Column = Annotated[Any, Kind.NUMBER]  # a number, or an array of one for each of many records
Block = Annotated[Any, Kind.REST]  # the last: a list of numbers, or such a list for each
# An array whose gradient lies where it was recorded: the kernel adds to it, or overwrites it if the
# operation's `overwrites` names it.
Parameter = Annotated[int, Kind.PARAMETER]
Array = Annotated[int, Kind.NUMBER]  # one that is read alone
# An array that the operation passes a gradient to, or NONE.
Differentiable = Annotated[int, Kind.DIFFERENTIABLE]
# Scratch nodes, given as their number: kept for backward; with a gradient that is scratch too;
# shared by all records, since nothing is kept.
Room = Annotated[int, Kind.ROOM]
GradientRoom = Annotated[int, Kind.GRADIENT_ROOM]
SharedRoom = Annotated[int, Kind.SHARED_ROOM]
# The last argument: any number of integers. Kernels get the index of the first.
Rest = Annotated[Sequence[int], Kind.REST]


@cache
def kinds(args: type) -> dict[str, Kind]:
    """The kind of every argument, in the order in memory."""
    hints = get_type_hints(args, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


@cache
def fields_of_kind(args: type, *wanted: Kind) -> tuple[str, ...]:
    """The names of the arguments of these kinds."""
    return tuple(name for name, kind in kinds(args).items() if kind in wanted)


@cache
def with_gradients(args: type) -> tuple[int, ...]:
    """The places of arguments with one in the list for the reverse sweep, in its order."""
    names = (*fields_of_kind(args, Kind.DIFFERENTIABLE), *fields_of_kind(args, Kind.GRADIENT_ROOM))
    return tuple(place(args, name) for name in names)


@cache
def with_overwrite(args: type) -> tuple[str, ...]:
    """The arguments with a bit in `overwrite`, in its order."""
    kinds = Kind.DIFFERENTIABLE, Kind.PARAMETER
    return tuple(name for kind in kinds for name in fields_of_kind(args, kind))


@cache
def rooms_of(args: type) -> tuple[tuple[int, bool], ...]:
    """The places of arguments that are room for kernels, and whether records share it."""
    rooms = (Kind.ROOM, Kind.GRADIENT_ROOM, Kind.SHARED_ROOM)
    return tuple(
        (place, kind is Kind.SHARED_ROOM)
        for place, kind in enumerate(kinds(args).values())
        if kind in rooms
    )


def readers(args: type) -> tuple[Kernel, Kernel]:
    """Inlined functions that read the arguments at operands[at], and the list for backward.

    The second gives a NamedTuple of `overwrite`, a bit for each gradient; `dout`; and for each
    differentiable argument x `dx`, where its gradient lies, and `overwrite_dx`, its bit: whether
    the gradient is written here first, rather than added to. `dx` of a GradientRoom is room. A
    parameter w has `overwrite_dw` alone.
    """
    return (
        inlined_made(lambda: _made_readers(args)["args"]),
        inlined_made(lambda: _made_readers(args)["grads_of"]),
    )


@cache
def _made_readers(args: type) -> dict[str, Any]:
    places = [
        f"at + {i}" if kind is Kind.REST else f"operands[at + {i}]"
        for i, kind in enumerate(kinds(args).values())
    ]
    fields = list(kinds(args))
    gradients = [f"d{fields[place]}" for place in with_gradients(args)]
    written = with_overwrite(args)
    names = ["overwrite", "dout", *gradients, *(f"overwrite_d{name}" for name in written)]
    grads = NamedTuple(f"{args.__name__}Grads", [(name, int) for name in names])  # type: ignore[misc]
    lists = [f"operands[back + {i}]" for i in range(2 + len(gradients))]
    lists += [f"operands[back] & {1 << bit}" for bit in range(len(written))]
    source = (
        f"def args(operands, at):\n    return Args({', '.join(places)})\n"
        f"def grads_of(operands, back):\n    return Grads({', '.join(lists)})\n"
    )
    return generated(args.__module__, source, {"Args": args, "Grads": grads})


def generated(module: str, source: str, names: dict[str, Any]) -> dict[str, Any]:
    """What generated source defines, out of these names; it belongs to the file of `module`."""
    scope = {"__name__": module, **names}
    exec(compile(source, sys.modules[module].__file__ or module, "exec"), scope)
    return scope


@dataclass(frozen=True, eq=False)
class ListOp:
    """An operation on scalar nodes that takes a list of arguments.

    Its kernels are called in the switch of scalar operations:

        forward(values, operands, inputs, out, at)
        backward(values, grads, operands, inputs, out, dout, at)

    or, by address, with the arguments of an ArrayOp, where `back` and the batch mean nothing.
    """

    name: str
    args: type
    forward: Kernel
    backward: Kernel
    # Several results: the nodes from `out` on, as many as the first argument says.
    several: bool = False
    by_address: bool = False


@dataclass(frozen=True, eq=False)
class ArrayOp:
    """An operation on arrays. Its first argument is a number of rows. Its kernels:

        forward(values, operands, inputs, out, at, batch_range)
        backward(values, grads, operands, inputs, out, at, back, batch_range)

    At operands[at] lie its arguments, at operands[back] the list for the reverse sweep, see
    layout.py. Without kernels it is a mark for the interpreter.
    """

    name: str
    args: type
    forward: Kernel | None
    backward: Kernel | None
    # More pairs of kernels for the same arguments: each has an opcode of its own.
    variants: tuple[tuple[Kernel, Kernel], ...] = ()
    # Whose values must outlive the forward sweep, besides parameters and rooms: arguments or "out".
    backward_reads: tuple[str, ...] = ()
    # The argument that something is added to: its gradient is that of the result, and where nobody
    # else needs it the result can take its place.
    adds_to: str = ""
    # The arguments to which the kernel passes no gradient where the place of that is NONE.
    optional: tuple[str, ...] = ()
    # The parameters whose gradient the kernel overwrites where their bit is set.
    overwrites: tuple[str, ...] = ()
    # Every row of the result is made of the same row of the arguments, in any order.
    row_by_row: bool = False
    several = False

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The arguments that a gradient is passed to."""
        return fields_of_kind(self.args, Kind.DIFFERENTIABLE)

    @property
    def gradient_rooms(self) -> tuple[str, ...]:
        """The arguments whose gradients are room for the kernel."""
        return fields_of_kind(self.args, Kind.GRADIENT_ROOM)


@cache
def place(args: type, name: str) -> int:
    """The place of an argument in the list."""
    return list(kinds(args)).index(name)


# Places in the list for the reverse sweep, before those of gradients.
OVERWRITE, DOUT = 0, 1


@cache
def gradient_place(args: type, name: str) -> int:
    """The place of an argument's gradient in the list for the reverse sweep."""
    return 2 + with_gradients(args).index(place(args, name))
