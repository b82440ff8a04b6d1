"""All commands: what each does, its flags, and the function that it calls.

What compiles or needs kernels is imported inside the command that uses it, so that --help and usage
errors answer at once.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tapegpt.bounds import Whole
from tapegpt.commands.flags import Parser, add_settings, given
from tapegpt.commands.overview import DOES
from tapegpt.errors import UsageError
from tapegpt.models.registry import import_model
from tapegpt.presets import PRESETS, configure
from tapegpt.setting import ABOVE_ZERO, settings_of
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig

SHELLS = ("bash", "zsh", "tcsh")
PRINTED = ("num_samples", "temperature")  # settings of the samples that `train` prints
COUNTED_CONTEXT = Whole(0, 16)  # characters


def parser_of(name: str) -> Parser:
    """The parser of a command's flags."""
    command = COMMANDS[name]
    does = f"{DOES[name][0].upper()}{DOES[name][1:]}."
    parser = Parser(prog=f"tapegpt {name}", description=does)
    command.add_flags(parser)
    parser.add_argument(
        "--debug", action="store_true", help="show a traceback when something goes wrong"
    )
    parser.set_defaults(command=command.run)
    return parser


def _train_flags(parser: Parser) -> None:
    parser.add_path(
        "--data",
        "FILE",
        "the text, one document a line (default: names; with --resume, the text of the run);"
        " several times for several files, which are one corpus; .gz files are decompressed, and -"
        " is standard input",
        several=True,
    )
    parser.add_path(
        "--out",
        "DIR",
        "where the run is saved: a new or an empty folder (default: out, from which an earlier run"
        " is moved aside)",
    )
    files = parser.group("files")
    files.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run under --out, up to --steps or --seconds in all",
    )
    parser.add_path(
        "--init-from",
        "DIR",
        "start from the weights of this run (the best state's), with a rate and steps of its own;"
        " characters that it does not know are added",
    )
    files.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that --out holds, once the new one is finished or has been evaluated;"
        " files of one's own stay beside it",
    )
    parser.add_value(
        "--save-every",
        ABOVE_ZERO.parse,
        "S",
        "files",
        "seconds from one save to the next (default: 60, or 100 times what a save takes)",
    )
    parser.add_path("--rescue", "DIR", "where to save at the end what --out does not take")
    parser.add_path(
        "--metrics",
        "FILE",
        "write every step's loss (nats, by default the mean over documents of the mean over"
        " positions), and val_loss, test_loss and the seconds of training where measured, as JSON"
        " lines; those of an earlier training are moved aside; - is standard output, and samples"
        " then go to standard error",
    )
    files.add_argument(
        "--quiet", action="store_true", help="show no progress, only samples and warnings"
    )
    names = ", ".join(PRESETS)
    parser.add_value(
        "--preset", str, "NAME", "model", f"take settings by name: {names}; see tapegpt presets"
    )
    _config_flag(parser)
    add_settings(parser, ModelConfig, TrainConfig)
    for name in PRINTED:
        parser.add_setting(name, *settings_of(SampleConfig)[name])
    parser.expect_bare("--data", "--out")


def _sample_flags(parser: Parser) -> None:
    where = "the folder of the run, whose best state draws where one was kept (default: out)"
    parser.add_path("--run", "DIR", where, Path("out"))
    parser.group("files").add_argument(
        "--last", action="store_true", help="draw from the last state, also where a better was kept"
    )
    _own_network_flag(parser)
    parser.add_path(
        "--data",
        "FILE",
        "the text that the run was trained on (default: where it remembers it)",
        several=True,
    )
    output = parser.group("output")
    output.add_argument(
        "--new",
        action="store_true",
        help="draw until there are --num-samples texts that are not in the corpus, all different",
    )
    output.add_argument(
        "--mark",
        action="store_true",
        help="say in a second column, after a tab, whether a text is new, or from the training,"
        " held out or test part of the corpus (a terminal shows it anyway)",
    )
    output.add_argument("--json", action="store_true", help="print a JSON object instead")
    output.add_argument("--quiet", action="store_true", help="print the texts alone")
    _config_flag(parser)
    add_settings(parser, SampleConfig)
    parser.add_path("--prompt-file", "FILE", "how every text begins, from a file")
    parser.group("sampling").add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="continue each line of standard input, as it is typed",
    )
    parser.expect_bare("--run", "--run")


def _bench_flags(parser: Parser) -> None:
    known, _ = settings_of(ModelConfig)["n_embd"]
    parser.group("model").add_argument(
        "--n-embd",
        type=known.bound.parse,
        nargs="+",
        default=[16],
        metavar="N",
        help=f"{known.help}, each width in turn (default 16)",
    )
    parser.add_path("--json", "FILE", "write the figures as JSON")


def _config_flag(parser: Parser) -> None:
    parser.add_path(
        "--config",
        "FILE",
        "take flags from a TOML file, such as n-embd = 32; those of the command line come first",
    )


def _info_flags(parser: Parser) -> None:
    parser.add_run("the folder of the run")
    _own_network_flag(parser)
    _json_flag(parser)
    parser.add_argument(
        "--toml", action="store_true", help="print its settings as a file for train --config"
    )


def _presets_flags(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one alone (default: all)")
    _json_flag(parser)


def _eval_flags(parser: Parser) -> None:
    parser.add_run("the folder of the run, whose best state is measured where one was kept")
    parser.add_path(
        "--data",
        "FILE",
        "the text to measure on, one document a line (default: the run's own, part by part); as"
        " for train, also several times",
        several=True,
    )
    parser.group("files").add_argument(
        "--last", action="store_true", help="measure the last state, also where a better was kept"
    )
    parser.group("files").add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave out documents of --data (characters of a text) that are not in the run's"
        " alphabet, and say how many",
    )
    _own_network_flag(parser)
    _json_flag(parser)


def _completion_flags(parser: Parser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell")


def _own_network_flag(parser: Parser) -> None:
    parser.add_value(
        "--model",
        str,
        "MODULE:NAME",
        "model",
        "the network of one's own that the run was trained with: reading a run imports nothing",
    )


def _import_own_network(options: argparse.Namespace) -> None:
    if options.model is not None:
        import_model(options.model)


def _baseline_flags(parser: Parser) -> None:
    parser.add_path(
        "--data",
        "FILE",
        "the text, one document a line (default: names); as for train, also several times",
        several=True,
    )
    for kind in (ModelConfig, TrainConfig):
        for name, (known, default) in settings_of(kind).items():
            if name in ("block_size", "text", "bytes", "val_fraction", "test_fraction", "seed"):
                parser.add_setting(name, known, default)
    parser.add_value(
        "--context",
        COUNTED_CONTEXT.parse,
        "N",
        "model",
        "from how many characters before it each is predicted (default 6)",
    )
    parser.expect_bare("--data", "--data")
    _json_flag(parser)


def _json_flag(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")


def _train(options: argparse.Namespace) -> int:
    settings = given(options, ModelConfig, TrainConfig)
    if not options.resume and not options.init_from:
        configure(options.preset, settings)  # refuse at once what cannot be right

    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite do not go together: choose one")
    if options.resume and options.init_from:
        raise UsageError("--resume and --init-from do not go together: choose one")
    if options.save_every is not None:
        ABOVE_ZERO.check("save_every", options.save_every)

    from tapegpt.commands import train

    files = train.Files(**{name: getattr(options, name) for name in train.Files._fields})
    printed = {name: getattr(options, name) for name in PRINTED}
    chosen = {name: value for name, value in printed.items() if value is not None}
    draws = chosen.get("num_samples") != 0
    if not draws:
        del chosen["num_samples"]
    sampling = SampleConfig(**chosen)
    return train.run(
        options.preset,
        settings,
        files,
        sampling if draws else None,
        options.quiet,
        options.arguments,
    )


def _sample(options: argparse.Namespace) -> int:
    _import_own_network(options)
    config = SampleConfig(**given(options, SampleConfig))

    if options.prompt is not None and options.prompt_file is not None:
        raise UsageError("--prompt and --prompt-file do not go together: choose one")

    from tapegpt.commands import sample

    chosen = {name: getattr(options, name) for name in sample.Options._fields}
    return sample.run(sample.Options(**chosen), config)


def _bench(options: argparse.Namespace) -> int:
    models = [ModelConfig(n_embd=width) for width in options.n_embd]

    from tapegpt.commands import bench

    return bench.run(models, options.json)


def _warmup(options: argparse.Namespace) -> int:
    from tapegpt.commands import warmup

    return warmup.run()


def _info(options: argparse.Namespace) -> int:
    _import_own_network(options)

    from tapegpt.commands import info

    return info.run(options.run, options.json, options.toml)


def _presets(options: argparse.Namespace) -> int:
    from tapegpt.commands import presets

    return presets.run(options.name, options.json)


def _completion(options: argparse.Namespace) -> int:
    from tapegpt.commands import completion

    return completion.run(options.shell, {name: parser_of(name) for name in COMMANDS})


def _baseline(options: argparse.Namespace) -> int:
    settings = given(options, ModelConfig, TrainConfig)
    configure(None, settings)  # refuse at once what cannot be right
    if options.context is not None:
        COUNTED_CONTEXT.check("context", options.context)

    from tapegpt.commands import baseline
    from tapegpt.train.baseline import CONTEXT

    context = CONTEXT if options.context is None else options.context
    return baseline.run(options.data, settings, context, options.json)


def _eval(options: argparse.Namespace) -> int:
    _import_own_network(options)

    from tapegpt.commands import evaluate

    return evaluate.run(options.run, options.data, options.last, options.skip_unknown, options.json)


class Command(NamedTuple):
    """A command: its flags, and the function that runs it and returns a code."""

    add_flags: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "train": Command(_train_flags, _train),
    "sample": Command(_sample_flags, _sample),
    "info": Command(_info_flags, _info),
    "eval": Command(_eval_flags, _eval),
    "presets": Command(_presets_flags, _presets),
    "baseline": Command(_baseline_flags, _baseline),
    "bench": Command(_bench_flags, _bench),
    "warmup": Command(lambda parser: None, _warmup),
    "completion": Command(_completion_flags, _completion),
}
