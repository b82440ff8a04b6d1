"""A graph in the language of Graphviz."""

from __future__ import annotations

import json

from tapegpt.drawing.graph import Graph, Key


def dot_of(graph: Graph) -> str:
    """The graph as a digraph whose boxes have two fields."""
    lines = ["digraph tape {", "  rankdir=LR;", "  node [shape=record];"]
    for key, box in graph.boxes.items():
        detail = box.detail if isinstance(key, str) else f"| {box.detail}"
        lines.append(f"  {_id(key)} [label={json.dumps(f'{box.title} {detail}')}];")
    for (a, b), count in graph.edges.items():
        label = f' [label="{count}"]' if count > 1 else ""
        lines.append(f"  {_id(a)} -> {_id(b)}{label};")
    return "\n".join([*lines, "}"])


def _id(key: Key) -> str:
    return json.dumps(key) if isinstance(key, str) else f"n{key}"
