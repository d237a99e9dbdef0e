"""What an arm is worth against ordinary training of the time that it took."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping

from cpfast.studies.statistics import Estimate, estimate, percent
from cpfast.studies.store import Entry

BASE = "k1"  # ordinary training: of several budgets it is a curve

Curve = list[tuple[float, float]]
"""Seconds and accuracy in percent, the shortest first."""


def is_control(arm: str) -> bool:
    """Whether it is ordinary training, of any length."""
    return arm.partition("@")[0] == BASE


def times(entries: Mapping[int, Entry]) -> dict[int, float]:
    """By seed: the samples of an arm's run, at the median over its seeds of what a sample took: a
    machine that was busy during one run is not the arm's doing."""
    rates = [e["seconds"] / e["forward_samples"] for e in entries.values() if e["forward_samples"]]
    of_one = statistics.median(rates) if rates else 0.0
    return {seed: of_one * e["forward_samples"] for seed, e in entries.items()}


def curves(ended: Mapping[str, Mapping[int, Entry]]) -> dict[int, Curve]:
    """By seed: what ordinary training makes of a time, in the seeds that have two such runs.

    Args:
        ended: the runs that ended, by arm and seed.
    """
    points: dict[int, Curve] = {}
    for arm in filter(is_control, ended):
        seconds = times(ended[arm])
        for seed, entry in ended[arm].items():
            points.setdefault(seed, []).append((seconds[seed], percent(entry)))
    return {seed: sorted(curve) for seed, curve in points.items() if len(curve) > 1}


def at_time(curve: Curve, seconds: float) -> float | None:
    """On straight lines in the logarithm of time; None beyond the ends, where nothing was run."""
    for (before, low), (after, high) in itertools.pairwise(curve):
        if before <= seconds <= after:
            if before == after or before == 0:
                return (low + high) / 2
            share = math.log(seconds / before) / math.log(after / before)
            return low + share * (high - low)
    return None


def against(entries: Mapping[int, Entry], controls: Mapping[int, Curve]) -> Estimate | None:
    """In points, paired by seed; None unless all of them have a control of their time."""
    differences, seconds = [], times(entries)
    for seed, entry in entries.items():
        control = at_time(controls.get(seed, []), seconds[seed])
        if control is None:
            return None
        differences.append(percent(entry) - control)
    return estimate(differences)
