"""Does the rule see learning? It is tried on true labels, on random ones, and on mere diffusion.

Random labels leave nothing to learn but by heart. The diffusion null (METHODS: "What is known to be
wrong", 3) has no data at all: a scale-invariant layer whose rotation is in equilibrium between
weight decay and gradient noise has turned away from where it was by

    D(t) = 1 - exp(-sum of lr wd / (1 - momentum) over the t steps)

in expectation (Wan et al., arXiv 2006.08419; Kosson et al., arXiv 2305.17212). Layers begin out
of that equilibrium, and those without normalisation behind them never reach it; the null is a
yardstick, not a model of a run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

from cpfast import schedules
from cpfast.detection import CriticalPeriodDetector, criteria
from cpfast.train.compare.plan import Plan
from cpfast.train.compare.runner import Entry, Runner, entry_of, find
from cpfast.train.compare.statistics import Estimate, interval
from cpfast.train.config import LABELS, Config
from cpfast.train.errors import UserError, require
from cpfast.train.optimizers import MOMENTUM
from cpfast.train.runfolder import RunFolder

FACTORS = (0.5, 1.0, 2.0)
LARGEST_FACTOR = 1000.0
# Of D per step, over lr * wd. SGD's decay is part of the gradient, and so passes through the
# momentum; AdamW's shrinks the weight itself. Nothing is known here of the others.
NULL_RATES = {"sgd": 1 / (1 - MOMENTUM), "adamw": 1.0}
SCHEDULE_POINTS = 100  # of an epoch stand for all of its steps, of which there may be thousands


class Setting(NamedTuple):
    """One point of the grid."""

    batch_size: int
    weight_decay: float
    total_epochs: int

    @property
    def name(self) -> str:
        return f"batch{self.batch_size}-decay{self.weight_decay}-epochs{self.total_epochs}"


@dataclass(frozen=True)
class Falsification(Plan):
    """Labels x batch size x weight decay x T x seeds, each until the rule fires, or T.

    The learning rate stays as configured, as in the paper.

    Attributes:
        batch_factors, decay_factors, epoch_factors: of the configured values.

    Raises:
        UserError: a factor is not positive.
    """

    batch_factors: tuple[float, ...] = FACTORS
    decay_factors: tuple[float, ...] = FACTORS
    epoch_factors: tuple[float, ...] = FACTORS

    KIND: ClassVar = "falsify"
    HEAD: ClassVar = {"batch_factors": list, "decay_factors": list, "epoch_factors": list}
    KEY: ClassVar = {
        "labels": (str,), "batch_size": (int,), "weight_decay": (int, float),
        "total_epochs": (int,), "seed": (int,),
    }  # fmt: skip

    EVALUATED: ClassVar = False  # a run ends where its rule fires

    def __post_init__(self) -> None:
        for name in ("batch", "decay", "epoch"):
            for factor in getattr(self, f"{name}_factors"):
                if not 0 < factor <= LARGEST_FACTOR:
                    raise UserError(
                        f"--{name}-factors must be positive, and {LARGEST_FACTOR:g} at most; "
                        f"got {factor}"
                    )

    def grid(self) -> list[Setting]:
        """Each setting once, though rounding may make two of them one."""
        config = self.config
        settings = [
            Setting(
                max(1, round(batch * config.batch_size)),
                decay * config.weight_decay,
                max(1, round(epochs * config.epochs)),
            )
            for batch, decay, epochs in product(
                self.batch_factors, self.decay_factors, self.epoch_factors
            )
        ]
        return list(dict.fromkeys(settings))

    def wanted(self, results: Mapping[str, Any]) -> int:
        return len(self.grid()) * len(LABELS) * len(self.seeds)

    def fault(self, entry: Entry) -> str | None:
        setting = Setting(*(entry[key] for key in Setting._fields))
        known = entry["labels"] in LABELS and setting in self.grid()
        return None if known else f"{setting.name}, {entry['labels']} labels, is not of its grid"

    def largest_batch(self) -> int:
        return max(setting.batch_size for setting in self.grid())

    def run(self, runner: Runner) -> None:
        for seed, setting, labels in product(self.seeds, self.grid(), LABELS):
            if runner.find(labels=labels, seed=seed, **setting._asdict()) is None:
                entry = self._run_one(seed, setting, labels, runner)
                runner.store({"labels": labels, **setting._asdict(), **entry})

    def _run_one(self, seed: int, setting: Setting, labels: str, runner: Runner) -> Entry:
        folder = RunFolder(runner.out / f"seed{seed}" / f"{setting.name}-{labels}")
        config = configured(self.config, setting).replace(seed=seed, labels=labels)
        label = f"seed {seed}, {setting.name}, {labels} labels"
        diverged = runner.train(config, folder, label, until=lambda t: t.detector.ended)
        return entry_of(folder, seed, diverged, charged=True)


def configured(config: Config, setting: Setting) -> Config:
    """The settings of a run: only its rotation is of interest."""
    return config.replace(
        method="full", batch_size=setting.batch_size, weight_decay=setting.weight_decay,
        epochs=setting.total_epochs, eval_every=setting.total_epochs, energy=False,
    )  # fmt: skip


def null_rotations(config: Config, train_size: int) -> Iterator[float] | None:
    """D after epoch 1, 2 .. T by the run's own schedule; None for an optimizer without a null.

    Args:
        config: with the batch size, the weight decay and the epochs of the run.
        train_size: samples of one pass.
    """
    if config.optimizer not in NULL_RATES:
        return None
    schedule = getattr(schedules, config.schedule)()
    steps = config.repeats * train_size / config.batch_size
    rate = config.lr * config.weight_decay * NULL_RATES[config.optimizer]

    def rotations() -> Iterator[float]:
        turned = 0.0
        for epoch in range(config.epochs):
            points = (epoch + i / SCHEDULE_POINTS for i in range(SCHEDULE_POINTS))
            turned += steps * rate * statistics.fmean(schedule(p / config.epochs) for p in points)
            yield -math.expm1(-turned)

    return rotations()


def null_end(config: Config, train_size: int) -> int | None:
    """The epoch after which the criterion fires on the null, if it does."""
    rotations = null_rotations(config, train_size)
    detector = CriticalPeriodDetector(config.criterion, config.epochs)
    for epoch, rotation in enumerate(rotations or (), 1):
        if detector.step(rotation, epoch):
            return epoch
    return None


class Cell(NamedTuple):
    """A setting, and the epochs after which the rule fired, by labels and seed (None: never)."""

    setting: Setting
    ends: dict[str, dict[int, int | None]]
    null: int | None

    def mean(self, labels: str) -> float | None:
        """Over seeds; None where the rule did not fire in one of them."""
        ends = [end for end in self.ends[labels].values() if end is not None]
        complete = ends and len(ends) == len(self.ends[labels])
        return statistics.fmean(ends) if complete else None


class Difference(NamedTuple):
    """By how many epochs the rule fires later with random labels.

    Attributes:
        estimate: None without a pair.
        pairs: of a setting and a seed in which both fired, without the censored ones.
        censored: pairs in which both fired as early as the rule can.
    """

    estimate: Estimate | None
    pairs: int
    censored: int


class Match(NamedTuple):
    """How well other firing epochs stand for those with true labels, over settings.

    Attributes:
        settings: how many have both, without the censored ones.
        shared: r^2 of the logarithms; rank: Spearman's correlation. None below 3 settings, or
            where one side does not vary.
        ratio: the median of the other epoch over that with true labels.
        censored: settings in which both are as early as the rule can fire.
    """

    settings: int
    shared: float | None
    rank: float | None
    ratio: float | None
    censored: int


def earliest(criterion: str) -> int:
    """The epoch that first fills the rule's window, where it has one.

    A rule that fires there might have fired before, had it been able to: the epoch is censored.
    """
    return criteria.make(criterion).earliest


def cells(results: Mapping[str, Any]) -> list[Cell]:
    """The grid with what has run; a run that diverged is left out."""
    plan = Falsification.of(results)
    found = []
    for setting in plan.grid():
        ends: dict[str, dict[int, int | None]] = {}
        for labels in LABELS:
            entries = [
                find(results, labels=labels, seed=seed, **setting._asdict()) for seed in plan.seeds
            ]
            ends[labels] = {
                e["seed"]: e["period_end"] for e in entries if e and e["diverged"] is None
            }
        null = null_end(configured(plan.config, setting), results["train_size"])
        found.append(Cell(setting, ends, null))
    return found


def paired_difference(found: list[Cell], first: int) -> Difference:
    """Of random from true labels; pairs of which both fired up to epoch `first` say nothing.

    Settings of one seed share their initialisation and their order of samples, so the interval is
    over the seeds' means, each over the settings in which both fired.
    """
    by_seed: dict[int, list[int]] = {}
    censored = 0
    for cell in found:
        true, random = cell.ends["true"], cell.ends["random"]
        for seed, end in true.items():
            other = random.get(seed)
            if end is None or other is None:
                continue
            if max(end, other) <= first:
                censored += 1
            else:
                by_seed.setdefault(seed, []).append(other - end)
    means = [statistics.fmean(differences) for differences in by_seed.values()]
    pairs = sum(map(len, by_seed.values()))
    return Difference(interval(means) if means else None, pairs, censored)


def match(found: list[Cell], by: str, first: int) -> Match:
    """How the firing epochs with true labels follow those of "random" labels or of the "null".

    Settings of which both fired up to epoch `first` are left out.
    """
    pairs = []
    for cell in found:
        true, other = cell.mean("true"), cell.null if by == "null" else cell.mean(by)
        if true is not None and other is not None:
            pairs.append((true, other))
    measured = [pair for pair in pairs if max(pair) > first]
    censored = len(pairs) - len(measured)
    ratio = statistics.median(other / true for true, other in measured) if measured else None
    sides = list(zip(*measured, strict=True))
    if len(measured) < 3 or any(len(set(side)) < 2 for side in sides):
        return Match(len(measured), None, None, ratio, censored)
    scipy = require("scipy.stats", "a rank correlation")
    logs = [[math.log(end) for end in side] for side in sides]
    rank = float(scipy.spearmanr(*logs).statistic)
    return Match(len(measured), statistics.correlation(*logs) ** 2, rank, ratio, censored)
