"""How the constants of `--preset fast` compare with others, on training data alone.

    python -m benchmarks.tune_presets [--sets NAME ...] [--candidates 10] [--out FILE]

Candidates vary the preset's learning rate, epochs, batch size, label smoothing and optimizer, drawn
at random from the grid below; the preset itself is the first of them. Of each set's training
samples a fifth is left out to validate on, and the rest is trained on, as `cpfast train` does; the
test samples are never looked at. By successive halving: all candidates are tried on the first
fifth, the better half of them on the second as well, and of these the better half, with the preset,
on all five, so that in the end each training sample has been validated on once. The best is chosen
after the fact, which makes it look a little better than it is; its difference to the preset comes
with a standard error, paired by fifth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpfast.studies.frontier.folds import FOLDS, fold
from cpfast.train import data, loop
from cpfast.train.config import Config
from cpfast.train.data.sets import Data
from cpfast.train.errors import Diverged

SETS = ("digits", "segments", "italy-power-demand")
GRID: dict[str, tuple[Any, ...]] = {
    "lr_factor": (0.25, 0.5, 1.0, 2.0, 4.0),  # times the preset's, of the optimizer and batch
    "epochs_factor": (0.5, 1.0, 2.0),
    "batch_size": (16, 32, 64, 128),
    "label_smoothing": (0.0, 0.1),
    "optimizer": ("sgd", "adamw"),
}
RUNGS = (1, 2, FOLDS)  # on how many of them the candidates that are left are tried

Candidate = dict[str, Any]  # of the grid; empty for the preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--candidates", type=int, default=10, help="the preset among them")
    parser.add_argument("--out", type=Path, help="JSON; what it has of other sets stays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))["sets"]
    for name in options.sets:
        found[name] = of_set(name, options.candidates)
        print(row(name, found[name]), flush=True)
        if options.out is not None:
            machine = {"processor": platform.processor(), "cores": os.cpu_count(),
                       "torch": torch.__version__}  # fmt: skip
            document = {"machine": machine, "grid": GRID, "sets": found}
            options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def of_set(name: str, count: int) -> dict[str, Any]:
    dataset = data.load(name)
    drawn = candidates(count)
    accuracies: list[list[float]] = [[] for _ in drawn]
    left = list(range(len(drawn)))
    for rung in RUNGS:
        for number in left:
            while len(accuracies[number]) < rung:
                part = fold(dataset, len(accuracies[number]))
                config = configured(name, drawn[number], part.train_size)
                accuracies[number].append(validated(config, part))
        if rung < FOLDS:
            ranked = sorted(left, key=lambda n: -statistics.fmean(accuracies[n]))
            left = sorted({0, *ranked[: math.ceil(len(left) / 2)]})
    best = max(left, key=lambda n: statistics.fmean(accuracies[n]))
    of_preset = configured(name, {}, dataset.train_size)
    return {
        "samples": dataset.train_size,
        "model": of_preset.model,
        "preset": {
            setting: getattr(of_preset, setting)
            for setting in ("lr", "epochs", "batch_size", "label_smoothing", "optimizer")
        },
        "candidates": [
            {"changes": candidate, "accuracy": values}
            for candidate, values in zip(drawn, accuracies, strict=True)
        ],
        "best": best,
    }


def candidates(count: int) -> list[Candidate]:
    """
    >>> first, second, third = candidates(3)
    >>> first, sorted(second) == sorted(GRID), second == candidates(2)[1]
    ({}, True, True)
    """
    random = np.random.default_rng(0)
    drawn: list[Candidate] = [{}]
    while len(drawn) < count:
        one = {name: values[random.integers(len(values))] for name, values in GRID.items()}
        if one not in drawn:
            drawn.append(one)
    return drawn


def configured(name: str, candidate: Candidate, size: int) -> Config:
    """The preset's settings for that optimizer and batch, with the candidate's factors."""
    settings = {k: v for k, v in candidate.items() if not k.endswith("_factor")}
    if "batch_size" in settings:
        settings["batch_size"] = min(settings["batch_size"], size)
    base = {"data": name, "preset": "fast", "threads": 1, "energy": False, "plot": False}
    config = Config.from_options({**base, **settings}, size)
    epochs = max(1, round(config.epochs * candidate.get("epochs_factor", 1.0)))
    lr = config.lr * candidate.get("lr_factor", 1.0)
    return config.replace(epochs=epochs, lr=lr, eval_every=epochs)


def validated(config: Config, part: Data) -> float:
    """In percent, after the last epoch; 0 for what diverged."""
    training = loop.Training(config, part)
    try:
        for _ in range(config.epochs):
            line = loop.train_epoch(training)
    except Diverged:
        return 0.0
    return 100 * line["test_accuracy"]


def row(name: str, found: dict[str, Any]) -> str:
    """
    >>> values = [{"changes": {}, "accuracy": [90.0, 92.0]},
    ...           {"changes": {"lr_factor": 2.0}, "accuracy": [91.0, 93.0]}]
    >>> row("x", {"candidates": values, "best": 1})
    '| x | 91.00 | 92.00 | +1.00 ± 0.00 | lr_factor 2.0 |'
    >>> row("x", {"candidates": values, "best": 0})
    '| x | 91.00 | 91.00 | +0.00 ± 0.00 | the preset |'
    """
    best = found["candidates"][found["best"]]
    of_preset, of_best = found["candidates"][0]["accuracy"], best["accuracy"]
    differences = [b - a for a, b in zip(of_preset, of_best, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    changes = ", ".join(f"{name} {value}" for name, value in best["changes"].items())
    return (
        f"| {name} | {statistics.fmean(of_preset):.2f} | {statistics.fmean(of_best):.2f} | "
        f"{statistics.fmean(differences):+.2f} ± {error:.2f} | {changes or 'the preset'} |"
    )


if __name__ == "__main__":
    main()
