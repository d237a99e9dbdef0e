"""How far each method stands from the control's curve, in points and in cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cpfast.studies.frontier import cost
from cpfast.studies.frontier.methods import CONTROL
from cpfast.studies.frontier.tuning import FINAL
from cpfast.studies.statistics import Estimate, estimate, percent
from cpfast.studies.store import Entry, Results
from cpfast.train.errors import require

if TYPE_CHECKING:
    from cpfast.studies.frontier.study import Frontier

BEYOND = 0.15  # of the cost of the control's dearest: so far its line goes on
CHEAPER = 0.25  # than the control's cheapest: so far a method is held against that
POWER = 0.8

Point = tuple[float, float]
"""Cost, and accuracy in percent."""


@dataclass(frozen=True)
class Distance:
    """A method, or the control, at a budget.

    Attributes:
        entries: the runs on all data that ended, by seed.
        accuracy: in percent.
        gains: over the control at equal cost in the main currency, in points, by seed; none of the
            control, and where it was not run at such a cost.
        gain: their mean.
        in_time: the same, at equal seconds.
        p: of `gain`, two-sided, by Student's t; None of fewer than two seeds.
        adjusted: by Holm's method, over all methods and budgets.
        visible: the gain that so many seeds would have shown with a probability of .8.
        relative: what it costs over what the control costs where it is as good, in the means over
            the seeds; None where the control is nowhere so good, or so bad.
    """

    arm: str
    budget: int
    entries: Mapping[int, Entry]
    accuracy: Estimate | None
    gains: Mapping[int, float] = field(default_factory=dict)
    gain: Estimate | None = None
    in_time: Estimate | None = None
    p: float | None = None
    adjusted: float | None = None
    visible: float | None = None
    relative: float | None = None


def finals(results: Results, arm: str, budget: int) -> dict[int, Entry]:
    """By seed, those that ended."""
    return {
        e["seed"]: e
        for e in results["runs"]
        if (e["arm"], e["budget"], e["fold"]) == (arm, budget, FINAL) and e["diverged"] is None
    }


def currency_of(results: Results) -> str:
    """The main one."""
    return cost.main_currency([e for e in results["runs"] if e["fold"] == FINAL])


def yardsticks(study: Frontier, results: Results) -> dict[int, int]:
    """By budget: that of the control with the highest mean among those that cost no more. Where
    tuning was out of luck, or more training is worse, who may spend more need not."""
    means = {
        budget: statistics.fmean(map(percent, entries.values()))
        for budget in sorted(study.budgets)
        if (entries := finals(results, CONTROL, budget))
    }
    found: dict[int, int] = {}
    best = next(iter(means), 0)
    for budget, mean in means.items():
        best = budget if mean >= means[best] else best
        found[budget] = best
    return found


def control(study: Frontier, results: Results, currency: str) -> dict[int, list[Point]]:
    """By seed: the control's curve, the cheapest first, which never falls in the mean."""
    curves: dict[int, list[Point]] = {}
    for budget, other in yardsticks(study, results).items():
        costs = costs_of(finals(results, CONTROL, budget), currency)
        for seed, entry in finals(results, CONTROL, other).items():
            if seed in costs:
                curves.setdefault(seed, []).append((costs[seed], percent(entry)))
    return {seed: sorted(points) for seed, points in curves.items()}


def costs_of(entries: Mapping[int, Entry], currency: str) -> dict[int, float]:
    if currency == "seconds":
        return cost.steady_seconds(entries)
    return {seed: cost.cost(entry, currency) for seed, entry in entries.items()}


def at(curve: Sequence[Point], where: float) -> float | None:
    """On straight lines in the logarithm of the cost; a little below the cheapest that one's
    accuracy, which is to the disadvantage of what costs less; None far beyond the ends.

    >>> at([(1.0, 50.0), (4.0, 70.0)], 2.0)
    60.0
    >>> at([(1.0, 50.0), (4.0, 70.0)], 0.8), at([(1.0, 50.0), (4.0, 70.0)], 0.5)
    (50.0, None)
    """
    if not curve or not curve[0][0] * (1 - CHEAPER) <= where <= curve[-1][0] * (1 + BEYOND):
        return None
    if len(curve) == 1 or where <= curve[0][0]:
        return curve[0][1]
    pairs = list(itertools.pairwise(curve))
    (before, low), (after, high) = next((pair for pair in pairs if where <= pair[1][0]), pairs[-1])
    if before == after:
        return (low + high) / 2
    return low + math.log(where / before) / math.log(after / before) * (high - low)


def cost_at(curve: Sequence[Point], accuracy: float) -> float | None:
    """The least at which the curve is so good; None where it nowhere is, or is from the start.

    >>> cost_at([(1.0, 50.0), (4.0, 70.0)], 60.0)
    2.0
    """
    if not curve or curve[0][1] > accuracy:
        return None
    for (before, low), (after, high) in itertools.pairwise(curve):
        if low <= accuracy <= high:
            if low == high:
                return before
            return before * (after / before) ** ((accuracy - low) / (high - low))
    return None


def distances(study: Frontier, results: Results) -> list[Distance]:
    """Of all that has a run on all data: by budget, the control first, then by the gain."""
    currency = currency_of(results)
    curves = {name: control(study, results, name) for name in {currency, "seconds"}}
    means = _mean_curve(study, results, currency)
    found: list[Distance] = []
    for budget in study.budgets:
        for arm in (CONTROL, *study.methods):
            entries = finals(results, arm, budget)
            accuracy = estimate(percent(e) for e in entries.values())
            if accuracy is None:
                continue
            if arm == CONTROL:
                found.append(Distance(arm, budget, entries, accuracy))
                continue
            by_seed = _gains(entries, curves[currency], currency)
            gains = list(by_seed.values())
            spent = statistics.fmean(costs_of(entries, currency).values())
            as_good = cost_at(means, accuracy.mean)
            found.append(
                Distance(
                    arm, budget, entries, accuracy, by_seed, estimate(gains),
                    estimate(_gains(entries, curves["seconds"], "seconds").values()),
                    p_value(gains), None, visible(gains),
                    None if as_good is None else spent / as_good,
                )
            )  # fmt: skip
    adjusted = holm([d.p for d in found])
    found = [replace(d, adjusted=p) for d, p in zip(found, adjusted, strict=True)]
    return sorted(found, key=_place)


def _place(one: Distance) -> tuple[int, bool, float]:
    return one.budget, one.arm != CONTROL, -math.inf if one.gain is None else -one.gain.mean


def _mean_curve(study: Frontier, results: Results, currency: str) -> list[Point]:
    points = []
    for budget, other in yardsticks(study, results).items():
        spent = statistics.fmean(costs_of(finals(results, CONTROL, budget), currency).values())
        entries = finals(results, CONTROL, other)
        points.append((spent, statistics.fmean(map(percent, entries.values()))))
    return sorted(points)


def _gains(
    entries: Mapping[int, Entry], curves: Mapping[int, Sequence[Point]], currency: str
) -> dict[int, float]:
    """By seed; none of them unless all seeds have a control of their cost."""
    costs, gains = costs_of(entries, currency), {}
    for seed, entry in entries.items():
        ours = at(curves.get(seed, []), costs[seed])
        if ours is None:
            return {}
        gains[seed] = percent(entry) - ours
    return gains


def over_budgets(found: Sequence[Distance]) -> list[float]:
    """What one method gains in the mean over its budgets, seed by seed: of those seeds that have
    been run at all of them."""
    ran = [one.gains for one in found if one.gains]
    seeds = sorted(set.intersection(*map(set, ran))) if ran else []
    return [statistics.fmean(gains[seed] for gains in ran) for seed in seeds]


def p_value(values: Sequence[float]) -> float | None:
    """That their mean is 0, two-sided."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return 1.0 if statistics.fmean(values) == 0 else 0.0
    t = require("scipy.stats", "a test").t
    return float(2 * t.sf(abs(statistics.fmean(values)) / error, len(values) - 1))


def visible(values: Sequence[float]) -> float | None:
    """The mean that as many values of their spread would tell from 0 at 5 %, with probability
    `POWER` (by the sum of two quantiles, which is a little too small for few)."""
    if len(values) < 2:
        return None
    t, freedom = require("scipy.stats", "a test").t, len(values) - 1
    quantiles = t.ppf(0.975, freedom) + t.ppf(POWER, freedom)
    return float(quantiles * statistics.stdev(values) / math.sqrt(len(values)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjusted so that each may be held against the level (Holm 1979); None stays.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, number) for number, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, number) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[number] = largest
    return adjusted
