"""How well a training recipe learns: the same command with several seeds.

    python bench/learning.py --preset 1s --data names.txt
    python bench/learning.py --seeds 3 --preset 60s --data names.txt --dropout 0

The seed shuffles the documents before they are split, so each run has another test part. What is
not an option of this program goes to `tapegpt train`, which must hold out both a --val-fraction and
a --test-fraction.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5)
    options, flags = parser.parse_known_args()
    train(["--steps", "1", *without_budget(flags)], 0)  # compiles
    ends = [train(flags, seed) for seed in range(1, 1 + options.seeds)]
    print(" ".join(flags))
    for name in ("test_loss", "val_loss", "step", "seconds"):
        print(f"  {name}: {describe([end[name] for end in ends])}")


def train(flags: list[str], seed: int) -> dict[str, float]:
    """What the last line of the metrics holds."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        command = [sys.executable, "-m", "tapegpt", "train", *flags]
        places = ["--out", str(Path(folder) / "out"), "--metrics", str(metrics)]
        subprocess.run(
            [*command, "--seed", str(seed), *places, "--quiet"], check=True, capture_output=True
        )
        last: dict[str, float] = json.loads(metrics.read_text().splitlines()[-1])
        return last


def without_budget(flags: list[str]) -> list[str]:
    kept, rest = [], iter(flags)
    for flag in rest:
        if flag in ("--steps", "--seconds"):
            next(rest)
        else:
            kept.append(flag)
    return kept


def describe(values: list[float]) -> str:
    mean, places = statistics.mean(values), 0 if isinstance(values[0], int) else 4
    shown = ", ".join(f"{value:.{places}f}" for value in values)
    spread = f" +- {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{mean:.{places}f}{spread} ({shown})"


if __name__ == "__main__":
    main()
