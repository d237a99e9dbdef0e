"""Means over seeds with intervals, differences paired by seed, and the verdict on a saving."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cpfast.train.compare.arms import CONTROLS
from cpfast.train.errors import require

Entry = dict[str, Any]
# The target for a saving that costs nothing.
TARGET_SAVED = 60.0  # % of full's time
TARGET_LOSS = 0.1  # points below full's mean


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval; None for one seed."""

    mean: float
    half: float | None

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    def text(self, digits: int = 2, sign: bool = False, unit: str = "") -> str:
        mean = f"{self.mean:+.{digits}f}" if sign else f"{self.mean:.{digits}f}"
        return (mean if self.half is None else f"{mean} ± {self.half:.{digits}f}") + unit


def interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t distribution."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None)
    quantile = require("scipy.stats", "an interval").t.ppf(0.975, len(values) - 1)
    return Estimate(mean, float(quantile) * statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Summary:
    """One arm over its seeds; accuracies in %, differences in points, paired by seed.

    Attributes:
        entries: its runs that ended, by seed.
        diverged: why the others did not, by seed.
        accuracy, seconds: None where no run ended.
        to_full, saved: accuracy and time saved in % against full; None for full itself, and
            where no seed has both.
        to_control: accuracy against the best control; None for that control.
    """

    arm: str
    entries: dict[int, Entry]
    diverged: dict[int, str]
    accuracy: Estimate | None
    seconds: Estimate | None
    to_full: Estimate | None = None
    saved: Estimate | None = None
    to_control: Estimate | None = None

    def mean(self, key: str) -> float | None:
        """Of the runs that have it; None where none has."""
        values = [e[key] for e in self.entries.values() if e[key] is not None]
        return statistics.fmean(values) if values else None


def summarise(results: Mapping[str, Any]) -> tuple[dict[str, Summary], str | None]:
    """Each arm that has a run, in the plan's order, and the name of the best control.

    The best control is that of the highest mean accuracy: chosen after the fact, it is a little
    too good, which is the side to err on.
    """
    runs = results["runs"]
    ended = {
        arm: {e["seed"]: e for e in runs if e["arm"] == arm and e["diverged"] is None}
        for arm in results["arms"]
    }
    accuracy = {arm: _estimate(_percent(e) for e in by.values()) for arm, by in ended.items()}
    controls = {c: a.mean for c in CONTROLS if (a := accuracy.get(c)) is not None}
    control = max(controls, key=lambda c: controls[c]) if controls else None
    summaries = {}
    for arm, entries in ended.items():
        diverged = {
            e["seed"]: e["diverged"] for e in runs if e["arm"] == arm and e["diverged"] is not None
        }
        if not entries and not diverged:
            continue
        full = {} if arm == "full" else ended["full"]
        best = {} if control is None or arm == control else ended[control]
        summaries[arm] = Summary(
            arm,
            entries,
            diverged,
            accuracy[arm],
            _estimate(e["seconds"] for e in entries.values()),
            paired(entries, full, lambda e, of: _percent(e) - _percent(of)),
            paired(entries, full, lambda e, of: 100 * (1 - e["seconds"] / of["seconds"])),
            paired(entries, best, lambda e, of: _percent(e) - _percent(of)),
        )
    return summaries, control


def paired(
    entries: Mapping[int, Entry],
    reference: Mapping[int, Entry],
    difference: Callable[[Entry, Entry], float],
) -> Estimate | None:
    """The mean of `difference` over the seeds that both have."""
    return _estimate(
        difference(entry, reference[seed]) for seed, entry in entries.items() if seed in reference
    )


def verdict(summaries: Mapping[str, Summary]) -> str:
    """Whether an arm saves 60 % of full's time and is, by its interval, as good as full."""
    target = (
        f"at least {TARGET_SAVED:.0f} % of full's time with the lower end of its accuracy interval "
        f"at full's mean - {TARGET_LOSS} points or above"
    )
    accuracy = {a: s.accuracy for a, s in summaries.items() if s.accuracy is not None}
    full = accuracy.pop("full", None)
    if full is None or not accuracy:
        return "Nothing to judge a saving by yet: full or all others lack a run that ended."
    if full.half is None or all(a.half is None for a in accuracy.values()):
        return f"One seed: whether an arm saves {target} cannot be said."
    least = full.mean - TARGET_LOSS
    sure = {}  # time saved, and how far the lower end is above the least
    for arm, own in accuracy.items():
        saved = summaries[arm].saved
        if saved is not None and own.half is not None and not summaries[arm].diverged:
            sure[arm] = (saved.mean, own.low - least)
    met = [a for a, (saved, margin) in sure.items() if saved >= TARGET_SAVED and margin >= 0]
    if met:
        which = ", ".join(
            f"{a} ({sure[a][0]:.1f} % saved, lower end {accuracy[a].low:.2f} %)" for a in met
        )
        return f"Saving {target} ({least:.2f} %): {which}."
    none = f"None of the arms run here saves {target} ({least:.2f} %)"
    if not sure:
        return f"{none}: none has an interval without a run that diverged."
    cheap = {a: margin for a, (saved, margin) in sure.items() if saved >= TARGET_SAVED}
    if cheap:
        nearest = max(cheap, key=lambda a: cheap[a])
        return (
            f"{none}. The nearest is {nearest}: it saves {sure[nearest][0]:.1f} %, and its lower "
            f"end is {-cheap[nearest]:.2f} points too low."
        )
    accurate = [a for a, (_, margin) in sure.items() if margin >= 0] or list(sure)
    nearest = max(accurate, key=lambda a: sure[a][0])
    saved_mean, margin = sure[nearest]
    also = "" if margin >= 0 else f", and its lower end is {-margin:.2f} points too low"
    return f"{none}. The nearest is {nearest}: it saves {saved_mean:.1f} %{also}."


def _percent(entry: Entry) -> float:
    return 100 * entry["test_accuracy"]


def _estimate(values: Any) -> Estimate | None:
    values = list(values)
    return interval(values) if values else None
