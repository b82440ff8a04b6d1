"""Names of before go on, with a warning that says the new one; `dir` shows the new ones alone."""

import numpy as np
import pytest

from tapegpt.tape import Tape


def filled():
    tape = Tape()
    tape.batch(1, 2)
    tape.set_lengths([2])
    return tape, tape.variables([1.0, 2.0, 0.5]), tape.array([[1.0, 2.0, 0.5]])


USES = {
    "record": ("elementwise", lambda t, ids, x: t.record("mul", ids, ids)),
    "runs": ("elementwise", lambda t, ids, x: t.runs("mul", ids, ids)),
    "softmax_of": ("softmax", lambda t, ids, x: t.softmax_of(ids)),
    "softmaxes": ("softmax", lambda t, ids, x: t.softmaxes([ids])),
    "lookup": ("take", lambda t, ids, x: t.lookup(ids[:1], t.input([1], 3), 0, stride=1)),
    "largest": ("topk", lambda t, ids, x: t.largest(ids, 2)),
    "gathered_linear": (
        "sparse_linear",
        lambda t, ids, x: t.gathered_linear(x, t.topk(x, 1), t.array(np.ones((3, 2)))),
    ),
    "linear plus": ("residual", lambda t, ids, x: t.linear(x, x, plus=t.array([[1.0]]))),
    "dropout plus": ("residual", lambda t, ids, x: t.dropout(x, 0.5, t.input([1], 9), plus=x)),
    "stride": ("internal", lambda t, ids, x: t.stride(3)),
}


@pytest.mark.parametrize("name", USES)
def test_an_old_name_says_the_new_one(name):
    new, use = USES[name]
    tape, ids, x = filled()
    with pytest.warns(DeprecationWarning, match=f"{name.split()[-1]} is now {new}") as warned:
        use(tape, ids, x)
    assert warned[0].filename == __file__


def test_previous_and_carry_are_a_scan():
    tape, _, _ = filled()
    with pytest.warns(DeprecationWarning, match="is now scan"):
        state = tape.carry(tape.relu(tape.previous(3)))
    assert state.shape == (2, 3)


def test_old_names_are_not_shown():
    old = {name for name in USES if " " not in name}
    assert not old & {*dir(Tape)} and not old & {*dir(Tape())}
    assert {"elementwise", "num_params"} <= {*dir(Tape())}
    with pytest.raises(AttributeError, match="'Tape' object has no attribute 'records_of'"):
        Tape().records_of  # noqa: B018


def test_one_record_or_one_each():
    tape = Tape()
    ids = tape.variables(np.arange(5.0))
    together, one_by_one = (
        tape.elementwise("mul", ids, ids, separate=separate) for separate in (False, True)
    )
    assert tape.values_of(together).tolist() == tape.values_of(one_by_one).tolist()
    assert len(list(tape.records())) == 1 + len(ids)
