"""One setting: what it may be, what it does, and which others it goes with.

See settings.py, whose dataclasses are made of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from math import inf
from typing import Any, Literal, NamedTuple, Protocol

from tapegpt.bounds import Bound, Choice, Number, Whole, flag, show
from tapegpt.errors import UsageError
from tapegpt.models import registry as models
from tapegpt.train import optimizers, schedules

MODELS = tuple(models.MODELS)
OPTIMIZERS = tuple(optimizers.OPTIMIZERS)
SCHEDULES = tuple(schedules.SCHEDULES)
GRANULARITIES = ("scalar", "dot", "vector")
DTYPES = ("float32", "float64")
WEIGHTINGS = ("document", "token")
INITIALIZATIONS = ("by-output", "by-input")
POSITIONS = ("learned", "rotary")
ACTIVATIONS = ("relu", "relu2", "gelu", "swiglu")

LARGEST_SIZE = 2**31 - 1  # extents on the tape are 32-bit
LARGEST_LAYERS = 1024  # or tables: each adds names and records, few enough to be counted
LARGEST_STEPS = 2**53  # step numbers stay exact in the schedule's float64
LARGEST_SEED = 2**64 - 1

Group = Literal[
    "model", "text", "length", "optimizer", "held-out documents", "computation", "sampling"
]


SHARE = Number(lambda x: 0 <= x < 1, "a number from 0 to below 1")
ABOVE_ZERO = Number(lambda x: 0 < x < inf, "a finite number above 0")
FROM_ZERO = Number(lambda x: 0 <= x < inf, "a finite number from 0 up")
TO_ONE = Number(lambda x: 0 < x <= 1, "a number above 0 and at most 1")
SIZE = Whole(1, LARGEST_SIZE)
COUNT = Whole(1, LARGEST_STEPS)
SEED = Whole(0, LARGEST_SEED)


class Only(NamedTuple):
    """The setting does nothing unless another one has one of these values."""

    other: str
    values: tuple[str, ...]


class ModelName(NamedTuple):
    """A model of the package, or one of one's own that has been imported."""

    metavar: str = "|".join((*MODELS, "MODULE:NAME"))

    def parse(self, text: str) -> object:
        return text

    def check(self, name: str, value: object) -> object:
        if type(value) is str and ":" in value:
            if value not in models.MODELS:
                raise UsageError(
                    f"{flag(name)} {show(value)} is not known yet: name it by {flag(name)}, or use"
                    " the network before the run is loaded"
                )
            return value
        return Choice(MODELS).check(name, value)


VECTOR = Only("granularity", ("vector",))


class _Kind(Protocol):
    """A model, an optimizer or a schedule: they say themselves what they use."""

    @property
    def settings(self) -> tuple[str, ...]: ...


def _users(other: str, kinds: Mapping[str, _Kind]) -> dict[str, Only]:
    used = {name for kind in kinds.values() for name in kind.settings}
    return {
        name: Only(other, tuple(user for user, kind in kinds.items() if name in kind.settings))
        for name in used
    }


USERS = {
    **_users("model", models.MODELS),
    **_users("optimizer", optimizers.OPTIMIZERS),
    **_users("schedule", schedules.SCHEDULES),
}


class Setting(NamedTuple):
    """What is known of a field beside its name, type and default."""

    bound: Bound
    group: Group
    help: str
    default: str | None  # shown in the help, where the field's own says nothing
    only: tuple[Only, ...]


def setting(
    value: object,
    bound: Bound,
    group: Group,
    help: str,  # one sentence, as --help shows it
    *only: Only,
    default: str | None = None,
) -> Any:
    """A field with this default; one of None may be None."""
    return field(default=value, metadata={"setting": Setting(bound, group, help, default, only)})


def settings_of(config: Any) -> dict[str, tuple[Setting, Any]]:
    """What is known of each field of a configuration, or of its type, and its default."""
    return {
        field.name: (_with_users(field.name, field.metadata["setting"]), field.default)
        for field in fields(config)
    }


def _with_users(name: str, known: Setting) -> Setting:
    if name not in USERS:
        return known
    only = USERS[name]
    if only.other == "model" and len(models.MODELS) > len(MODELS):
        own = (user for user in models.MODELS if user not in MODELS)
        own = (user for user in own if name in models.MODELS[user].settings)
        only = only._replace(values=(*only.values, *own))
    return known._replace(only=(only, *known.only))


def unmet(known: Setting, values: Mapping[str, object]) -> Only | None:
    """What these values lack for the setting to do something; values left out are right."""
    for only in known.only:
        if only.other in values and values[only.other] not in only.values:
            return only
    return None


def check_used(given: Iterable[str], *configs: Any) -> None:
    """Raise `UsageError` for a given setting that does nothing beside the others."""
    values = {name: getattr(config, name) for config in configs for name in settings_of(config)}
    known = {name: it for config in configs for name, (it, _) in settings_of(config).items()}
    for name in given:
        if only := unmet(known[name], values):
            value = values[name]
            typed = flag(name) if value is True else f"{flag(name)} {show(value)}"
            raise UsageError(
                f"{typed} is for {flag(only.other)}"
                f" {' or '.join(only.values)} alone, not for {values[only.other]}: leave it out"
            )


def check_all(config: Any) -> None:
    for name, (known, default) in settings_of(config).items():
        value = getattr(config, name)
        if value is not None or default is not None:
            object.__setattr__(config, name, known.bound.check(name, value))
