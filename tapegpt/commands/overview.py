"""What each command does: tapegpt --help needs to know, and import, no more than this."""

from tapegpt import __version__

DOES = {
    "train": "train a model, save it under --out and print 20 samples",
    "sample": "draw texts from a saved run",
    "info": "tell what is in a saved run",
    "eval": "measure a saved run on a text",
    "presets": "spell out the presets of train",
    "baseline": "measure what counting alone knows of a text, without a network",
    "bench": "time training at every granularity, as a share of the peak",
    "warmup": "compile and cache the kernels",
    "completion": "print a script that completes commands and flags in a shell",
}


_COMMANDS = "\n".join(f"    {name:<12}{does}" for name, does in DOES.items())
OVERVIEW = f"""usage: tapegpt [-h] [--version] command ...

A real autograd tape, in Python, that trains a GPT at the speed of the machine.

commands:
{_COMMANDS}

options:
  -h, --help    show this help message and exit
  --version     show program's version number and exit

The first three: tapegpt train, tapegpt sample, tapegpt info. Each command has a
--help of its own."""

SHOWN = {
    "-h": OVERVIEW,
    "--help": OVERVIEW,
    "--version": f"tapegpt {__version__}",
}
