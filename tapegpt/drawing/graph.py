"""What a drawing of a tape shows: boxes and the edges between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tapegpt.drawing.listing import MOST, Recorded, records

if TYPE_CHECKING:
    from tapegpt.tape import Tape

Key = int | str  # a node, or the name of an operation


class Box(NamedTuple):
    """What made a node, and its value and gradient; or an operation, and how often it was done."""

    title: str
    detail: str


class Graph(NamedTuple):
    """Boxes in the order in which they appear on the tape, and how many edges go between two."""

    boxes: dict[Key, Box]
    edges: dict[tuple[Key, Key], int]


def graph_of(tape: Tape) -> Graph:
    """A box for every node that an operation reads or makes; of very many, for every operation."""
    found = list(records(tape))
    nodes = dict.fromkeys(node for record in found for node in (*record.nodes, *record.results))
    return _of_nodes(tape, found, nodes) if len(nodes) <= MOST else _folded(found)


def _of_nodes(tape: Tape, found: list[Recorded], nodes: dict[int, None]) -> Graph:
    names = {node: record.name for record in found for node in record.results}
    boxes: dict[Key, Box] = {}
    for node in nodes:
        shape = tape.shape(node)
        detail = f"{shape[0]} x {shape[1]}" if len(shape) == 2 else _number_and_gradient(tape, node)
        boxes[node] = Box(names.get(node, "leaf"), detail)
    edges: dict[tuple[Key, Key], int] = {
        (node, out): 1 for record in found for node in record.nodes for out in record.results
    }
    return Graph(boxes, edges)


def _number_and_gradient(tape: Tape, node: int) -> str:
    return f"{tape.value(node):.4g} | grad {tape.grad(node):.4g}"


def _folded(found: list[Recorded]) -> Graph:
    makers = {node: record.name for record in found for node in record.results}
    counts: dict[str, int] = {}
    edges: dict[tuple[Key, Key], int] = {}
    for record in found:
        for node in record.nodes:
            edge = (makers.get(node, "leaf"), record.name)
            edges[edge] = edges.get(edge, 0) + 1
            counts.setdefault(edge[0], 0)
        counts[record.name] = counts.get(record.name, 0) + 1
    leaves = {node for record in found for node in record.nodes} - makers.keys()
    if leaves:
        counts["leaf"] = len(leaves)
    return Graph({name: Box(name, f"x {count}") for name, count in counts.items()}, edges)
