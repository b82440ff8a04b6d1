"""All models, by name: those that the modules of this folder list."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeVar

from tapegpt.errors import UsageError
from tapegpt.models import __path__ as folder
from tapegpt.models.model import Model, Shapes

if TYPE_CHECKING:
    from tapegpt.models.layer_builder import LayerBuilder
    from tapegpt.settings import ModelConfig

X = TypeVar("X")


def _models() -> Iterator[Model]:
    for name in sorted(module.name for module in iter_modules(folder)):
        if not __name__.endswith(f".{name}"):
            yield from getattr(import_module(f"tapegpt.models.{name}"), "MODELS", ())


# Those of the package, and then those of one's own: "module:NAME".
MODELS: dict[str, Model] = {model.name: model for model in _models()}


def add_model(name: str, model: Model) -> None:
    """Have settings know a network of one's own by this name."""
    MODELS[name] = model


def import_model(name: str) -> None:
    """Import the network "package.module:NAME": an instance of Model, or a class of them.

    Raises `UsageError` where there is none.
    """
    module, _, attribute = name.partition(":")
    if name in MODELS:
        return
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UsageError(
            f"--model {name!r} cannot be imported: {error}: write package.module:NAME"
        ) from error
    model = found() if isinstance(found, type) and issubclass(found, Model) else found
    if not isinstance(model, Model):
        raise UsageError(f"--model {name!r} is no network: make a subclass of tapegpt.Network")
    add_model(name, model)


def network_shapes(config: ModelConfig, vocab_size: int) -> Shapes:
    """Name and shape of every weight of one network, without its prefix: see `Model.shapes`."""
    return MODELS[config.model].shapes(config, vocab_size)


def parameter_shapes(config: ModelConfig, vocab_size: int) -> Shapes:
    """Name and shape of every weight, in the order of initialisation: see `Model.shapes`."""
    shapes = network_shapes(config, vocab_size)
    return {prefix + name: shape for prefix in prefixes(config) for name, shape in shapes.items()}


def parameter_totals(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """How many weights there are, and how many numbers they hold: without naming every one."""
    shapes = network_shapes(config, vocab_size).values()
    return config.ensemble * len(shapes), config.ensemble * sum(map(math.prod, shapes))


def zeros(config: ModelConfig) -> set[str]:
    """The weights that are 0 at first: see `Model.zeros`."""
    names = MODELS[config.model].zeros(config)
    return {prefix + name for prefix in prefixes(config) for name in names}


def prefixes(config: ModelConfig) -> list[str]:
    """What the names of every network's weights begin with."""
    return [""] if config.ensemble == 1 else [f"net{i}." for i in range(config.ensemble)]


def networks(net: LayerBuilder[X], config: ModelConfig) -> Iterator[X]:
    """Build every network's logits of the next token, for the positions that `net` stands at."""
    for net.prefix in prefixes(config):
        yield MODELS[config.model].logits(net, config)
