"""The pictures of a tape: what they show, and that boxes and edges lie where they should."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tapegpt.drawing import svg
from tapegpt.drawing.graph import graph_of
from tapegpt.tape import Tape

SVG = "{http://www.w3.org/2000/svg}"


def expression(tape):
    """A tangle in which some nodes are used by much later ones."""
    a, b = tape.var(-4.0), tape.var(2.0)
    c, d = a + b, a * b + b**3
    d = d + (b + a).relu() * c
    e = (c - d) ** 2 + a
    e.backward()
    return e


def drawn(tape):
    """Texts, boxes (left, top) and the ends of edges of a picture."""
    root = ElementTree.fromstring(tape._repr_svg_())
    texts = [text.text for text in root.iter(f"{SVG}text")]
    boxes = [(float(r.get("x")), float(r.get("y"))) for r in root.iter(f"{SVG}rect")]
    paths = [path.get("d").split() for path in root.iter(f"{SVG}path")]
    ends = [((float(p[1]), float(p[2])), (float(p[-2]), float(p[-1]))) for p in paths]
    return texts, boxes, ends


def test_every_node_has_a_box_with_operation_value_and_gradient():
    tape = Tape()
    a, b = tape.var(3.0), tape.var(2.0)
    (a * b + a).backward()
    texts, boxes, ends = drawn(tape)
    expected = ["leaf", "3 | grad 3", "leaf", "2 | grad 3", "mul", "6 | grad 1", "add"]
    assert texts == [*expected, "9 | grad 1"]
    assert len(boxes) == 4 and len(ends) == 4


def test_boxes_do_not_overlap_and_edges_go_right_from_box_to_box():
    tape = Tape()
    expression(tape)
    _, boxes, ends = drawn(tape)
    for i, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:i]:
            apart = abs(x - other_x) >= svg.WIDTH or abs(y - other_y) >= svg.HEIGHT
            assert apart, (x, y, other_x, other_y)
    lefts = {(x, y + svg.HEIGHT / 2) for x, y in boxes}
    rights = {(x + svg.WIDTH, y) for x, y in lefts}
    assert len(ends) == len(graph_of(tape).edges)
    assert all(begin in rights and end in lefts and begin[0] < end[0] for begin, end in ends)


def test_arrays_parameters_tables_and_several_results():
    tape = Tape()
    w, table = tape.parameter(np.ones((3, 2))), tape.parameter(np.ones((4, 2)))
    tape.linear(tape.take(table, [0, 1]), w)
    tape.softmax([tape.var(1.0), tape.var(2.0)])
    graph = graph_of(tape)
    titles = [box.title for box in graph.boxes.values()]
    assert sorted(titles) == sorted(["leaf"] * 4 + ["embed", "linear", "softmax", "softmax"])
    assert len(graph.edges) == 1 + 2 + 4
    assert "2 x 3" in drawn(tape)[0]


@pytest.mark.parametrize("records", [31, 10_000])
def test_many_nodes_are_folded_by_operation(records):
    tape = Tape()
    x = tape.var(1.0)
    for _ in range(records):
        x = (x + 1.0).tanh()
    texts, boxes, _ = drawn(tape)
    assert {"add", f"x {records}", "tanh", f"x {records + 1}"} <= set(texts)
    assert len(boxes) == 3


def test_an_empty_tape():
    assert drawn(Tape()) == ([], [], [])
