"""Settings: what is accepted, what is refused, and that every refusal is one line with a remedy."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegpt.errors import UsageError
from tapegpt.presets import PRESETS, configure, default_learning_rate
from tapegpt.setting import MODELS, OPTIMIZERS, settings_of
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig, from_dict

KINDS = (ModelConfig, TrainConfig, SampleConfig)


def refusal(kind, **settings):
    with pytest.raises(UsageError) as caught:
        kind(**settings)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 250
    return line


def test_defaults_are_the_documented_ones():
    assert asdict(ModelConfig()) == {
        "model": "gpt", "n_layer": 1, "n_embd": 16, "n_head": 4, "block_size": 16,
        "n_state": 32, "n_att": 16, "look_back": 0, "ensemble": 1, "dropout": 0.0,
        "positions": "learned", "activation": "relu", "qk_norm": False, "final_norm": False,
        "zero_init": False, "softcap": None, "counting": 0,
    }  # fmt: skip
    assert asdict(TrainConfig()) == {
        "text": False, "bytes": False, "eval_windows": None,
        "steps": 1000, "seconds": None, "batch_size": 1, "optimizer": "adam",
        "learning_rate": None, "beta1": 0.85, "beta2": 0.99, "epsilon": 1e-8,
        "weight_decay": 0.01, "cautious_decay": False, "adam_rate": 0.004, "momentum": 0.9,
        "clip_norm": None,
        "schedule": "linear", "cooldown": 0.5, "final_rate": 0.0,
        "decay": 0.998, "warmup": 0.05, "averaging": 0.0, "weighting": "document",
        "val_fraction": 0.0, "test_fraction": 0.0, "eval_every": None, "patience": None,
        "granularity": "vector", "dtype": "float32",
        "initialization": "by-output", "seed": 42, "threads": 1,
    }  # fmt: skip
    assert asdict(SampleConfig()) == {
        "temperature": 0.5, "num_samples": None, "length": None, "stop": None, "top_k": None,
        "top_p": None, "prompt": "", "seed": None,
    }  # fmt: skip


def test_messages_name_flag_value_and_remedy():
    assert refusal(ModelConfig, n_embd=15) == (
        "--n-embd 15 is not divisible by --n-head 4: choose a multiple of 4"
    )
    assert refusal(TrainConfig, learning_rate=float("nan")) == (
        "--learning-rate nan is out of range: choose a finite number above 0"
    )
    assert refusal(TrainConfig, steps=5, seconds=2.5) == (
        "--steps 5 and --seconds 2.5 are two budgets: choose one"
    )
    assert refusal(TrainConfig, patience=3) == (
        "--patience 3 wants held-out documents: choose a --val-fraction above 0"
    )
    assert refusal(TrainConfig, optimizer="adan") == (
        "--optimizer 'adan' is unknown (did you mean adam?): choose adam or adamw or sgd or muon"
    )
    assert refusal(TrainConfig, dtype="float16") == (
        "--dtype 'float16' is unknown (did you mean float64?): choose float32 or float64"
    )
    assert refusal(TrainConfig, seed=-1) == (
        "--seed -1 is out of range: choose a whole number from 0 to 18446744073709551615"
    )
    assert refusal(SampleConfig, top_k=2.0) == (
        "--top-k 2.0 is not a whole number: choose a whole number from 1 to 2147483647"
    )


WHOLE = [
    (ModelConfig, "n_layer"),
    (ModelConfig, "n_embd"),
    (ModelConfig, "n_head"),
    (ModelConfig, "block_size"),
    (ModelConfig, "n_state"),
    (ModelConfig, "n_att"),
    (TrainConfig, "steps"),
    (TrainConfig, "batch_size"),
    (TrainConfig, "eval_every"),
    (TrainConfig, "patience"),
    (TrainConfig, "seed"),
    (SampleConfig, "num_samples"),
    (SampleConfig, "top_k"),
    (SampleConfig, "seed"),
]
HOSTILE_WHOLE = [-1, -(10**5000), 2**64, 10**30, 10**5000, True, 1.0, float("nan"), "1", [1], {}]


@pytest.mark.parametrize(("kind", "name"), WHOLE)
@pytest.mark.parametrize("value", HOSTILE_WHOLE, ids=range(len(HOSTILE_WHOLE)))
def test_whole_numbers_are_checked(kind, name, value):
    assert refusal(kind, **{name: value}).startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize(("kind", "name"), [case for case in WHOLE if case[1] != "seed"])
def test_sizes_and_counts_start_at_one(kind, name):
    assert "0 is out of range" in refusal(kind, **{name: 0})
    others = {
        "n_embd": {"n_head": 1},
        "eval_every": {"val_fraction": 0.1},
        "patience": {"val_fraction": 0.1},
    }.get(name, {})
    assert getattr(kind(**{name: 1}, **others), name) == 1


@pytest.mark.parametrize(
    ("kind", "name", "good", "bad"),
    [
        (TrainConfig, "learning_rate", [5e-324, 1, 1e308], [0, -0.0, -1.0]),
        (TrainConfig, "weight_decay", [0, 0.01, 100], [-1e-9]),
        (TrainConfig, "momentum", [0, 0.999999], [-1e-9, 1]),
        (TrainConfig, "clip_norm", [5e-324, 1], [0, -1]),
        (TrainConfig, "decay", [1e-9, 1], [0, -0.0, 1.000001]),
        (TrainConfig, "warmup", [0, 0.99], [-1e-9, 1]),
        (TrainConfig, "cooldown", [1e-9, 1], [0, 1.000001]),
        (TrainConfig, "adam_rate", [5e-324, 1, 1e308], [0, -1.0]),
        (ModelConfig, "softcap", [5e-324, 15], [0, -1]),
        (TrainConfig, "val_fraction", [0, 0.5, 0.99], [-1e-9, 1]),
        (TrainConfig, "beta1", [0, 0.999999], [-1e-9, 1, 1.5]),
        (TrainConfig, "beta2", [0, 0.999999], [-1e-9, 1, 1.5]),
        (TrainConfig, "epsilon", [1e-30, 1], [0, -1e-8]),
        (SampleConfig, "temperature", [0, 1e-9, 100], [-1e-9]),
        (SampleConfig, "top_p", [1e-9, 1], [0, 1.0000001, -0.5]),
    ],
)
def test_numbers_are_checked(kind, name, good, bad):
    for value in good:
        kept = getattr(kind(**{name: value}), name)
        assert type(kept) is float and kept == value
    for value in [*bad, float("inf"), float("-inf"), float("nan"), 10**400, True, "0.5", [], {}]:
        assert refusal(kind, **{name: value}).startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 10**400, True, "3"])
def test_seconds_are_checked(value):
    assert TrainConfig(seconds=3).seconds == 3.0
    assert TrainConfig(seconds=3).steps is None
    assert refusal(TrainConfig, seconds=value).startswith("--seconds ")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ModelConfig, "model"),
        (ModelConfig, "positions"),
        (ModelConfig, "activation"),
        (TrainConfig, "optimizer"),
        (TrainConfig, "schedule"),
        (TrainConfig, "granularity"),
        (TrainConfig, "dtype"),
        (TrainConfig, "initialization"),
    ],
)
@pytest.mark.parametrize("value", ["", "GPT", "x" * 10000, "a\nb", "\ud800", None, 1, ["gpt"]])
def test_choices_are_checked(kind, name, value):
    assert ": choose " in refusal(kind, **{name: value})


def test_prompt_must_be_text():
    assert SampleConfig(prompt="né\0").prompt == "né\0"
    assert refusal(SampleConfig, prompt=None) == "--prompt None is not text: choose a string"


def test_seeds_fill_64_bits():
    assert TrainConfig(seed=0).seed == 0
    assert SampleConfig(seed=2**64 - 1).seed == 2**64 - 1


@given(st.integers(1, 64), st.integers(1, 64))
def test_heads_divide_the_embedding(n_embd, n_head):
    if n_embd % n_head:
        line = refusal(ModelConfig, n_embd=n_embd, n_head=n_head)
        assert f"--n-embd {n_embd} " in line and f"--n-head {n_head}:" in line
    else:
        assert ModelConfig(n_embd=n_embd, n_head=n_head).n_head == n_head


def test_models_check_the_sizes_that_they_have():
    assert refusal(ModelConfig, model="rnn-att", n_state=8, n_att=9) == (
        "--n-att 9 is more than --n-state 8: choose at most 8"
    )
    ModelConfig(model="rnn-att", n_state=8, n_att=8)
    ModelConfig(model="rnn", n_state=8, n_att=9)
    ModelConfig(model="rnn", n_embd=5, n_head=4)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_cannot_be_changed(kind):
    with pytest.raises(FrozenInstanceError):
        setattr(kind(), fields(kind)[0].name, 1)


def test_configure_takes_defaults_then_preset_then_flags():
    assert configure(None, {}) == (ModelConfig(), TrainConfig())
    model, training = configure("microgpt", {})
    assert model == ModelConfig()
    assert training == TrainConfig(learning_rate=0.01, dtype="float64")
    model, training = configure(
        "microgpt", {"n_layer": 2, "dtype": "float32", "granularity": "scalar", "seed": None}
    )
    assert model == ModelConfig(n_layer=2)
    assert training == TrainConfig(learning_rate=0.01, granularity="scalar")


def test_one_budget_stands_for_the_other():
    _, training = configure("1s", {"steps": 9})
    assert (training.steps, training.seconds) == (9, None)
    _, training = configure("microgpt", {"seconds": 2})
    assert (training.steps, training.seconds) == (None, 2.0)
    _, training = configure(None, {"steps": 7})
    assert (training.steps, training.seconds) == (7, None)
    with pytest.raises(UsageError, match="--steps 7 and --seconds 2 are two budgets"):
        configure("microgpt", {"steps": 7, "seconds": 2})


@pytest.mark.parametrize(
    ("name", "value", "other", "kinds", "wrong"),
    [
        ("beta1", 0.85, "optimizer", ["adam", "adamw", "muon"], "sgd"),
        ("beta2", 0.9, "optimizer", ["adam", "adamw", "muon"], "sgd"),
        ("epsilon", 1e-08, "optimizer", ["adam", "adamw", "muon"], "sgd"),
        ("weight_decay", 0.01, "optimizer", ["adamw", "muon"], "adam"),
        ("cautious_decay", True, "optimizer", ["adamw", "muon"], "adam"),
        ("momentum", 0.9, "optimizer", ["sgd", "muon"], "adam"),
        ("adam_rate", 0.004, "optimizer", ["muon"], "adamw"),
        ("cooldown", 0.5, "schedule", ["wsd"], "cosine"),
        ("decay", 0.998, "schedule", ["exponential"], "linear"),
        ("warmup", 0.05, "schedule", ["cosine", "wsd"], "linear"),
        ("n_layer", 2, "model", ["gpt"], "rnn"),
        ("n_head", 2, "model", ["gpt"], "rnn-att"),
        ("n_state", 32, "model", ["rnn", "rnn-att"], "gpt"),
        ("n_att", 16, "model", ["rnn-att"], "rnn"),
        ("look_back", 0, "model", ["gpt"], "rnn"),
        ("dropout", 0.5, "granularity", ["vector"], "dot"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(name, value, other, kinds, wrong):
    for kind in kinds:
        configure(None, {name: value, other: kind})
    with pytest.raises(UsageError) as caught:
        configure(None, {name: value, other: wrong})
    typed = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
    assert str(caught.value) == (
        f"{typed} is for --{other} {' or '.join(kinds)} alone, not for {wrong}: leave it out"
    )


def test_what_a_preset_has_for_another_choice_is_left_out():
    model, training = configure("60s", {"model": "rnn", "optimizer": "sgd"})
    assert (model.look_back, model.ensemble) == (0, 1)
    assert training.weight_decay == TrainConfig().weight_decay
    assert training.learning_rate == PRESETS["60s"]["learning_rate"]


def test_settings_without_effect_are_kept_where_nobody_gave_them():
    """A saved run holds the defaults of all."""
    TrainConfig(optimizer="sgd", beta1=0.85, decay=0.998, warmup=0.05, weight_decay=0.01)
    ModelConfig(model="rnn", n_layer=1, n_head=4, n_att=16)


def test_every_setting_has_a_help_of_one_sentence():
    for kind in KINDS:
        for name, (known, _) in settings_of(kind).items():
            assert known.help[0].islower() and known.help[-1] != ".", name
            assert ". " not in known.help and 10 < len(known.help) < 180, name


def test_default_learning_rates():
    for model in MODELS:
        for optimizer in OPTIMIZERS:
            rate = default_learning_rate(ModelConfig(model=model), TrainConfig(optimizer=optimizer))
            assert 0 < rate < 1
    assert default_learning_rate(ModelConfig(), TrainConfig()) == 0.01  # microgpt's
    slow, fast = (
        default_learning_rate(ModelConfig(), TrainConfig(optimizer="sgd", momentum=momentum))
        for momentum in (0.99, 0.0)
    )
    assert fast == pytest.approx(100 * slow)


def test_configure_refuses():
    with pytest.raises(UsageError, match="--preset 'quick' is unknown: choose microgpt"):
        configure("quick", {})
    with pytest.raises(UsageError, match=r"'micrgpt' is unknown .did you mean microgpt\?"):
        configure("micrgpt", {})
    with pytest.raises(UsageError, match="--preset ''"):
        configure("", {})
    with pytest.raises(UsageError, match="unknown setting 'n_emdb'"):
        configure(None, {"n_emdb": 16})
    with pytest.raises(UsageError, match="--steps 0"):
        configure(None, {"steps": 0})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold(preset):
    model, training = configure(preset, {})
    assert {**asdict(model), **asdict(training)}.items() >= PRESETS[preset].items()


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(n_layer=3),
        TrainConfig(learning_rate=1, seed=2**63),
        TrainConfig(seconds=1, val_fraction=0.5, patience=3, clip_norm=1),
        SampleConfig(top_k=3, top_p=1, prompt="é"),
    ],
)
def test_from_dict_undoes_asdict_through_json(config):
    again = from_dict(type(config), json.loads(json.dumps(asdict(config))))
    assert again == config and repr(again) == repr(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", KINDS)
def test_from_dict_wants_no_other_settings(kind):
    settings = asdict(kind())
    for name in settings:
        rest = {key: value for key, value in settings.items() if key != name}
        assert from_dict(kind, rest) == kind()
    with pytest.raises(UsageError, match="has no setting 'colour'"):
        from_dict(kind, settings | {"colour": 1})
    with pytest.raises(UsageError, match="has no setting 7"):
        from_dict(kind, settings | {7: 1})


@given(st.sampled_from(KINDS), st.data())
def test_from_dict_survives_any_json(kind, data):
    settings = asdict(kind())
    name = data.draw(st.sampled_from(sorted(settings)))
    value = data.draw(JSON)
    for table in (value, settings | {name: value}):
        try:
            config = from_dict(kind, table)
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 250
        else:
            if table and (name, value) != ("steps", None):  # else it is the default
                assert getattr(config, name) == value
            assert replace(config) == config
