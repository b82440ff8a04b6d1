"""The command line: parse, call, and turn errors into one line and an exit code.

What compiles or needs kernels is imported inside the command that uses it, so that --help and
usage errors answer at once.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from tapegpt import __version__
from tapegpt.config import (
    DTYPES,
    GRANULARITIES,
    LEARNING_RATES,
    MODELS,
    OPTIMIZERS,
    PRESETS,
    SCHEDULES,
    WEIGHTINGS,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    configure,
    flag,
)
from tapegpt.errors import TapegptError
from tapegpt.terminal import print_texts, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # A stream is None where whoever started us has closed it; this one is open to the end.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("tapegpt: %(message)s"))
    log = logging.getLogger("tapegpt")
    log.addHandler(handler)
    log.setLevel(logging.WARNING if getattr(options, "quiet", False) else logging.INFO)
    try:
        code = options.command(options)
        sys.stdout.flush()
        return int(code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone: nothing is wrong here, and nothing more can be said.
        _discard_output()
        return 1
    except TapegptError as error:
        return _fail(options, str(error), error.exit_code)
    except MemoryError:
        return _fail(options, "out of memory: make the model or the batch smaller")
    except OSError as error:  # of no file that the command line names: those have their own lines
        _discard_output()
        return _fail(options, f"{error.filename or 'output'}: {error.strerror or error}")
    finally:
        log.removeHandler(handler)


def _fail(options: argparse.Namespace, problem: str, exit_code: int = 1) -> int:
    if options.debug:
        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
    print(f"tapegpt: error: {_one_line(problem, 1000)}", file=sys.stderr)
    return exit_code


def _one_line(text: str, longest: int) -> str:
    """The text, printable and without its middle if need be, whatever values it quotes."""
    shown = printable(text)
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]}...{shown[-half:]}"


def _discard_output() -> None:
    """Have what is still to be written go nowhere, so that nothing fails once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _OneLine(logging.Formatter):
    """Messages name files, whose names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Parser(argparse.ArgumentParser):
    """A parser that says in one short line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tapegpt: error: {_one_line(message, 200)}: see {self.prog} --help\n")


def _path(text: str) -> Path:
    if not text or "\0" in text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError(f"{text!r} is not a path")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tapegpt", description="A real autograd tape that trains a GPT at machine speed."
    )
    parser.add_argument("--version", action="version", version=f"tapegpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _train_parser(commands)
    _sample_parser(commands)
    _bench_parser(commands)
    warmup = commands.add_parser(
        "warmup",
        help="compile and cache every kernel",
        description="Compile and cache every kernel.",
    )
    warmup.set_defaults(command=_warmup)
    for command in commands.choices.values():
        command.add_argument(
            "--debug", action="store_true", help="show a traceback when something goes wrong"
        )
    return parser


def _train_parser(commands: "argparse._SubParsersAction[_Parser]") -> None:
    model, training = ModelConfig(), TrainConfig()
    parser = commands.add_parser(
        "train",
        help="train a model and save it",
        description="Train a model, save it under --out and print 20 samples.",
    )
    add = parser.add_argument
    add("--data", type=_path, metavar="FILE", help="text, one document a line (default: names)")
    add("--preset", metavar="NAME", help=f"settings by name: {', '.join(PRESETS)}")
    add("--model", choices=MODELS, help=f"default {model.model}")
    add("--granularity", choices=GRANULARITIES, help=f"default {training.granularity}")
    for name in ("n_layer", "n_embd", "n_head", "block_size", "n_state", "n_att"):
        add(flag(name), type=int, metavar="N", help=f"default {getattr(model, name)}")
    for name, meaning in {
        "look_back": "earlier characters that a position embeds beside its own",
        "ensemble": "networks that are trained side by side and predict together",
    }.items():
        add(flag(name), type=int, metavar="N", help=f"{meaning} (default {getattr(model, name)})")
    add(
        "--dropout",
        type=float,
        metavar="X",
        help=f"share of what a block adds, left out in training (default {model.dropout:g})",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, metavar="N", help=f"default {training.steps}")
    budget.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="train for so long instead, evaluations not counted; the schedule follows the clock",
    )
    add("--batch-size", type=int, metavar="N", help=f"default {training.batch_size}")
    add("--optimizer", choices=OPTIMIZERS, help=f"default {training.optimizer}")
    add("--learning-rate", type=float, metavar="X", help=f"default {_default_rates()}")
    add("--schedule", choices=SCHEDULES, help=f"of the learning rate, default {training.schedule}")
    for name, meaning in {
        "decay": "exponential: a step's factor, or that of a thousandth of --seconds",
        "warmup": "cosine: share of the training in which the rate rises",
        "beta1": "of adam and adamw: what the mean gradient keeps at a step",
        "beta2": "of adam and adamw: what the mean square keeps",
        "momentum": "of sgd",
        "weight_decay": "of adamw, embeddings included",
        "averaging": "predict with the mean of the weights over this share of the steps; 0: none",
    }.items():
        default = getattr(training, name)
        add(flag(name), type=float, metavar="X", help=f"{meaning} (default {default:g})")
    add("--clip-norm", type=float, metavar="X", help="shorten longer gradients to this norm")
    add(
        "--weighting",
        choices=WEIGHTINGS,
        help=f"what weighs the same in the loss, default {training.weighting}",
    )
    add(
        "--val-fraction",
        type=float,
        metavar="X",
        help="share of the documents that is held out, to measure val_loss (nats, mean over all"
        " their tokens) and to keep the best state of the run in the folder best of --out",
    )
    add(
        "--test-fraction",
        type=float,
        metavar="X",
        help="share of the documents that is held out until the end, to measure test_loss: of the"
        " best state, where there is a --val-fraction, else of the last",
    )
    add("--eval-every", type=int, metavar="N", help="steps (default: ten evaluations in all)")
    add("--patience", type=int, metavar="N", help="stop after N evaluations without improvement")
    add("--dtype", choices=DTYPES, help=f"default {training.dtype}")
    add("--seed", type=int, metavar="N", help=f"default {training.seed}")
    add(
        "--threads",
        type=int,
        metavar="N",
        help=f"processors that share each batch (default {training.threads})",
    )
    add("--out", type=_path, default=Path("out"), metavar="DIR", help="where the run is saved")
    add("--resume", action="store_true", help="go on with the run under --out")
    add(
        "--metrics",
        type=_path,
        metavar="FILE",
        help="write every step's loss (nats, by default the mean over documents of the mean over"
        " positions), and val_loss, test_loss and the seconds of training where measured, as JSON"
        " lines",
    )
    add("--quiet", action="store_true", help="no progress, only results")
    parser.set_defaults(command=_train)


def _default_rates() -> str:
    """By optimizer, and by model where those differ."""
    shown = []
    for optimizer in OPTIMIZERS:
        rates = [f"{getattr(LEARNING_RATES[model], optimizer):g}" for model in MODELS]
        factor = "(1 - momentum) " if optimizer == "sgd" else ""
        values = " / ".join(rates if len(set(rates)) > 1 else rates[:1])
        shown.append(f"{factor}{values} for {optimizer}")
    return f"{', '.join(shown)} ({' / '.join(MODELS)})"


def _sample_parser(commands: "argparse._SubParsersAction[_Parser]") -> None:
    config = SampleConfig()
    parser = commands.add_parser(
        "sample", help="draw texts from a saved run", description="Draw texts from a saved run."
    )
    add = parser.add_argument
    add(
        "--run",
        type=_path,
        default=Path("out"),
        metavar="DIR",
        help="default out; its best: out/best",
    )
    add(
        "--temperature",
        type=float,
        default=config.temperature,
        metavar="X",
        help=f"0 takes the likeliest character (default {config.temperature:g})",
    )
    add(
        "--num-samples",
        type=int,
        default=config.num_samples,
        metavar="N",
        help=f"default {config.num_samples}",
    )
    add("--top-k", type=int, metavar="K", help="only the K likeliest characters")
    add("--top-p", type=float, metavar="P", help="only the likeliest characters of total share P")
    add("--prompt", default=config.prompt, metavar="TEXT", help="how every text begins")
    add("--seed", type=int, metavar="N", help="default: the run's own")
    parser.set_defaults(command=_sample)


def _bench_parser(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "bench",
        help="time the granularities against the machine's peak",
        description="Time training at every granularity, as a share of the machine's peak.",
    )
    add = parser.add_argument
    add("--n-embd", type=int, nargs="+", default=[16], metavar="N", help="default 16")
    add("--json", type=_path, metavar="FILE", help="write the figures as JSON")
    parser.set_defaults(command=_bench)


def _given(options: argparse.Namespace, *kinds: type) -> dict[str, Any]:
    """The settings of these configurations that the command line names."""
    names = [field.name for kind in kinds for field in fields(kind)]
    given = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _train(options: argparse.Namespace) -> int:
    settings = _given(options, ModelConfig, TrainConfig)
    if not options.resume:
        configure(options.preset, settings)  # refuse at once what cannot be right

    from tapegpt.commands import train

    return train.run(
        data=options.data,
        preset=options.preset,
        settings=settings,
        out=options.out,
        resume=options.resume,
        metrics=options.metrics,
        quiet=options.quiet,
    )


def _sample(options: argparse.Namespace) -> int:
    config = SampleConfig(**_given(options, SampleConfig))

    from tapegpt.checkpoint import load

    run = load(options.run)

    from tapegpt.sampling import sample

    print_texts(sample(run, config))
    return 0


def _bench(options: argparse.Namespace) -> int:
    models = [ModelConfig(n_embd=width) for width in options.n_embd]

    from tapegpt.commands import bench

    return bench.run(models, options.json)


def _warmup(options: argparse.Namespace) -> int:
    from tapegpt.commands import warmup

    return warmup.run()
