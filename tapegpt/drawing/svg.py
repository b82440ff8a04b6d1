"""A graph as an SVG picture: boxes in columns, each to the right of what it reads.

The layout is that of Sugiyama et al. (1981) in its simplest form: columns by the longest way from a
leaf; an edge over several columns runs through a bend in each; and within a column boxes and bends
are in the order of the mean height of their neighbours, a few times from left to right and back.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise

from tapegpt.drawing.graph import Graph, Key

WIDTH, HEIGHT = 168, 40  # of a box, in pixels
ACROSS, DOWN, BEND, MARGIN = 48, 14, 12, 8  # between columns, between boxes; of a bend; around all
ROUNDS = 8
FILLS = {"leaf": "#eef6ee"}
STYLE = "font: 12px ui-monospace, monospace; fill: #222; text-anchor: middle"

Place = Key | tuple[Key, Key, int]  # a box, or the bend of an edge in a column


def svg_of(graph: Graph) -> str:
    """The picture, as text of its own that a notebook or a browser shows."""
    forward = [edge for edge in graph.edges if _goes_right(graph, edge)]
    columns = _columns(graph, forward)
    chains = {(a, b): _chain(a, b, columns) for a, b in forward}
    places = _heights(_ordered(graph, columns, chains))
    right = max(columns.values(), default=0)
    bottom = max((y + _size(place) for place, y in places.items()), default=0.0)
    size = 2 * MARGIN + WIDTH + right * (WIDTH + ACROSS), 2 * MARGIN + bottom
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg"'
        f' viewBox="0 0 {size[0]:g} {size[1]:g}" width="{size[0]:g}" height="{size[1]:g}">'
    ]
    for edge, count in graph.edges.items():
        chain = chains.get(edge, edge)
        points = [(MARGIN + _x(place, columns), MARGIN + _middle(place, places)) for place in chain]
        lines += _drawn_edge(points, count)
    for key, box in graph.boxes.items():
        x, y = MARGIN + _x(key, columns), MARGIN + places[key]
        lines += _drawn_box(x, y, box.title, box.detail)
    return "\n".join([*lines, "</svg>"])


def _goes_right(graph: Graph, edge: tuple[Key, Key]) -> bool:
    """Not of operations that read each other in turn, as there are where they are folded."""
    order = {key: number for number, key in enumerate(graph.boxes)}
    a, b = edge
    return isinstance(a, int) or a == "leaf" != b or order[a] < order[b]


def _columns(graph: Graph, edges: list[tuple[Key, Key]]) -> dict[Key, int]:
    """The column of every box: after all that it reads; of a leaf just before its first reader."""
    columns: dict[Key, int] = dict.fromkeys(graph.boxes, 0)
    read: dict[Key, list[Key]] = {}
    readers: dict[Key, list[Key]] = {}
    for a, b in edges:
        read.setdefault(b, []).append(a)
        readers.setdefault(a, []).append(b)
    for key in graph.boxes:  # in an order in which what is read comes first
        if key in read:
            columns[key] = 1 + max(columns[a] for a in read[key])
    for key in graph.boxes:
        if key not in read and key in readers:
            columns[key] = min(columns[b] for b in readers[key]) - 1
    return columns


def _chain(a: Key, b: Key, columns: dict[Key, int]) -> list[Place]:
    """An edge from box to box, with a bend in each column between."""
    bends: list[Place] = [(a, b, column) for column in range(columns[a] + 1, columns[b])]
    return [a, *bends, b]


def _ordered(
    graph: Graph, columns: dict[Key, int], chains: dict[tuple[Key, Key], list[Place]]
) -> list[list[Place]]:
    """The places of every column, from top to bottom."""
    rows: list[list[Place]] = [[] for _ in range(max(columns.values(), default=-1) + 1)]
    for key in graph.boxes:
        rows[columns[key]].append(key)
    neighbours: tuple[dict[Place, list[Place]], ...] = ({}, {})  # to the left, to the right
    for chain in chains.values():
        for bend in chain[1:-1]:
            assert isinstance(bend, tuple)
            rows[bend[2]].append(bend)
        for left, right in pairwise(chain):
            neighbours[0].setdefault(right, []).append(left)
            neighbours[1].setdefault(left, []).append(right)
    for turn in range(ROUNDS):
        known, side = rows[:: -1 if turn % 2 else 1], neighbours[turn % 2]
        heights = _heights(rows)
        for column in known:
            means = {place: _mean(place, side.get(place, ()), heights) for place in column}
            column.sort(key=means.__getitem__)
            heights.update(_heights([column]))
    return rows


def _mean(place: Place, neighbours: list[Place] | tuple[()], heights: dict[Place, float]) -> float:
    if not neighbours:
        return heights[place]
    return sum(heights[other] + _size(other) / 2 for other in neighbours) / len(neighbours)


def _heights(rows: list[list[Place]]) -> dict[Place, float]:
    """Where every place begins, from the top; the columns are centred."""
    totals = [sum(_size(place) + DOWN for place in column) for column in rows]
    found: dict[Place, float] = {}
    for column, total in zip(rows, totals, strict=True):
        y = (max(totals) - total) / 2
        for place in column:
            found[place] = y
            y += _size(place) + DOWN
    return found


def _size(place: Place) -> float:
    return BEND if isinstance(place, tuple) else HEIGHT


def _x(place: Place, columns: dict[Key, int]) -> float:
    column = place[2] if isinstance(place, tuple) else columns[place]
    return column * (WIDTH + ACROSS)


def _middle(place: Place, places: dict[Place, float]) -> float:
    return places[place] + _size(place) / 2


def _drawn_edge(points: list[tuple[float, float]], count: int) -> list[str]:
    (x, y), *rest = points
    path = f"M {x + WIDTH:g} {y:g}"
    if rest[0][0] <= x:  # back to the left, or to the same box: below both
        to, height = rest.pop()
        low = max(y, height) + HEIGHT
        path += f" C {x + WIDTH + ACROSS:g} {low:g} {to - ACROSS:g} {low:g} {to:g} {height:g}"
        x, y = to, height
    for number, (to, height) in enumerate(rest):
        x = x + WIDTH
        half = (x + to) / 2
        path += f" C {half:g} {y:g} {half:g} {height:g} {to:g} {height:g}"
        if number + 1 < len(rest):  # straight on beside the boxes of its column
            path += f" H {to + WIDTH:g}"
        x, y = to, height
    lines = [f'<path d="{path}" fill="none" stroke="#888"/>']
    if count > 1:
        lines.append(f'<text x="{x - ACROSS / 2:g}" y="{y - 4:g}" style="{STYLE}">{count}</text>')
    return lines


def _drawn_box(x: float, y: float, title: str, detail: str) -> list[str]:
    fill = FILLS.get(title, "#f4f4fb")
    texts = ((title, y + 16, "font-weight: 600"), (detail, y + 32, ""))
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{fill}"'
        ' stroke="#888"/>',
        *(
            f'<text x="{x + WIDTH / 2:g}" y="{at:g}" style="{STYLE}; {more}">{escape(text)}</text>'
            for text, at, more in texts
        ),
    ]
