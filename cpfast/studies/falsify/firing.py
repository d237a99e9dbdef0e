"""When the rule fired with true and with random labels and on the null; how far they agree."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

from cpfast.detection import criteria
from cpfast.studies.falsify.null import null_end
from cpfast.studies.statistics import Estimate, interval
from cpfast.studies.store import Results, find
from cpfast.train.config import LABELS
from cpfast.train.errors import require

if TYPE_CHECKING:
    from cpfast.studies.falsify.study import Falsification, Setting


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


def cells(study: Falsification, results: Results) -> list[Cell]:
    """The grid with what has run; a run that diverged is left out."""
    found = []
    for setting in study.grid():
        ends: dict[str, dict[int, int | None]] = {}
        for labels in LABELS:
            entries = [
                find(results, labels=labels, seed=seed, **setting._asdict()) for seed in study.seeds
            ]
            ends[labels] = {
                e["seed"]: e["period_end"] for e in entries if e and e["diverged"] is None
            }
        null = null_end(study.configured(setting), results["train_size"])
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
