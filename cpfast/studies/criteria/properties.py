"""What each criterion is worth as a detector, from when it fired."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpfast.studies.statistics import Estimate, estimate
from cpfast.studies.store import Entry, Results

if TYPE_CHECKING:
    from cpfast.studies.criteria.study import Criteria


@dataclass(frozen=True)
class Firing:
    """Of a criterion on one kind of labels, over settings and seeds.

    Attributes:
        runs: how many watched it.
        ends: the epoch after which it fired, in those in which it did.
        shares: the same over the planned epochs.
        early: in how many of these that was the first epoch at which it can.
    """

    runs: int
    ends: Sequence[int]
    shares: Sequence[float]
    early: int


def firing(study: Criteria, results: Results, criterion: str, labels: str) -> Firing:
    runs = [e for e in _runs(results, criterion) if e["labels"] == labels]
    fired = [e for e in runs if _end(e, criterion) is not None]
    ends = [_end(e, criterion) or 0 for e in fired]
    totals = [study.configured(e["setting"], labels).epochs for e in fired]
    return Firing(
        len(runs), ends, [end / total for end, total in zip(ends, totals, strict=True)],
        sum(e["verdicts"][criterion]["censored"] for e in fired),
    )  # fmt: skip


def later(results: Results, criterion: str) -> tuple[Estimate | None, int]:
    """By how many times later it fires on random labels than on true ones: the logarithm to base
    2, over the seeds' means, and the number of pairs, without those of which both fired at the
    first epoch at which they can."""
    by_seed: dict[int, list[float]] = {}
    runs = {(e["setting"], e["seed"], e["labels"]): e for e in _runs(results, criterion)}
    for (setting, seed, labels), true in runs.items():
        random = runs.get((setting, seed, "random"))
        if labels != "true" or random is None:
            continue
        ends = _end(true, criterion), _end(random, criterion)
        early = [e["verdicts"][criterion]["censored"] for e in (true, random)]
        if ends[0] is not None and ends[1] is not None and not all(early):
            by_seed.setdefault(seed, []).append(math.log2(ends[1] / ends[0]))
    return estimate(statistics.fmean(v) for v in by_seed.values()), sum(map(len, by_seed.values()))


def change(results: Results, criterion: str, setting: str) -> float | None:
    """How many times later it fires on true labels in a setting than in the base: the median over
    the seeds in which both did; None without any, or where all are as early as they can be."""
    runs = {
        (e["setting"], e["seed"]): e for e in _runs(results, criterion) if e["labels"] == "true"
    }
    ratios, early = [], []
    for (name, seed), base in runs.items():
        other = runs.get((setting, seed))
        if name != "base" or other is None:
            continue
        ends = _end(base, criterion), _end(other, criterion)
        if ends[0] is not None and ends[1] is not None:
            ratios.append(ends[1] / ends[0])
            early += [e["verdicts"][criterion]["censored"] for e in (base, other)]
    return statistics.median(ratios) if ratios and not all(early) else None


def cost(results: Results, criterion: str) -> tuple[float, float]:
    """Seconds and samples of its own, over those of the runs that it watched."""
    runs = [e for e in _runs(results, criterion) if e["diverged"] is None]
    seconds = sum(e["seconds"] for e in runs)
    trained = sum(e["backward_samples"] for e in runs)
    own = [e["verdicts"][criterion] for e in runs]
    return (
        sum(v["seconds"] for v in own) / seconds if seconds else 0.0,
        sum(v["samples"] for v in own) / trained if trained else 0.0,
    )


def _runs(results: Results, criterion: str) -> list[Entry]:
    return [e for e in results["runs"] if criterion in e["verdicts"] and e["diverged"] is None]


def _end(entry: Entry, criterion: str) -> int | None:
    end: int | None = entry["verdicts"][criterion]["period_end"]
    return end
