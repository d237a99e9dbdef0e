"""What options of `cpfast train` cost, on one CPU thread.

    python -m benchmarks.entry_options [--out FILE]

Prints two tables in Markdown: seconds of the epochs of digits with a checkpoint after each and
after every tenth; and milliseconds that a batch takes to be augmented, where torchvision can be
imported. Each pair is run in turns; medians, and the range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from cpfast.train import data, process, run
from cpfast.train.batches import ImageBatches
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

TURNS = 7
EPOCHS = 30
BATCH, SIDE, CALLS = 128, 32, 20


def in_turns(functions: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(TURNS):
        for name, function in functions.items():
            found[name].append(function())
    return found


def seconds_of_a_run(save_every: int) -> float:
    """Of digits, from the first epoch to the last checkpoint."""
    options = {"preset": "fast", "epochs": EPOCHS, "energy": False, "plot": False}
    digits = data.load("digits")
    config = Config.from_options({**options, "save_every": save_every}, digits.train_size)
    process.prepare(config)
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        folder.create(config)
        start = time.perf_counter()
        run.train(config, digits, folder)
        return time.perf_counter() - start


def seconds_of_a_batch(augment: str) -> float:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1024, SIDE, SIDE, 3), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (1024,), generator=g)
    own = ImageData(images, labels, images[:1], labels[:1], tuple("0123456789"), "random")
    batches = ImageBatches(Config.from_options({"augment": augment, "flip": True}), own)
    index, draw = torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    batches.train(index, draw)
    start = time.perf_counter()
    for call in range(CALLS):
        batches.train((index + call * BATCH) % 1024, draw + call)
    return (time.perf_counter() - start) / CALLS


def table(title: str, unit: str, found: Mapping[str, list[float]], scale: float = 1.0) -> str:
    lines = [f"| {title} | {unit} | range |", "|---|---:|---:|"]
    for name, values in found.items():
        middle, low, high = (
            scale * number for number in (statistics.median(values), min(values), max(values))
        )
        lines.append(f"| {name} | {middle:.3g} | {low:.3g} to {high:.3g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON of the seconds, turn by turn")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    machine = {
        "processor": platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    seconds["saved"] = found = in_turns({
        "each epoch": lambda: seconds_of_a_run(1),
        "every 10": lambda: seconds_of_a_run(10),
    })  # fmt: skip
    print(table(f"digits, {EPOCHS} epochs, saved", "s", found))
    print()
    try:
        seconds["augmented"] = found = in_turns({
            "crop-flip": lambda: seconds_of_a_batch("crop-flip"),
            "randaugment": lambda: seconds_of_a_batch("randaugment"),
        })  # fmt: skip
    except UserError as error:
        print(error)
    else:
        print(table(f"{BATCH} images of {SIDE}x{SIDE}x3, augmented", "ms", found, scale=1000))
    if out is not None:
        out.write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
