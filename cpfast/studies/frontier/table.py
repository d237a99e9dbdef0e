"""The tables and the notes of a frontier."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from cpfast.studies.document import (
    Document,
    Table,
    diverged_notes,
    last_notes,
    seeds_note,
    shown,
    title_of,
)
from cpfast.studies.frontier import cost, curve, folds, knobs
from cpfast.studies.frontier.curve import Distance
from cpfast.studies.frontier.methods import AUTOPILOT, CONTROL
from cpfast.studies.statistics import estimate
from cpfast.studies.store import Entry, Results

if TYPE_CHECKING:
    from cpfast.studies.frontier.study import Frontier

LEVEL = 0.05
NAMES = {"flops": "operations", "samples": "samples", "seconds": "seconds"}


def document(study: Frontier, results: Results) -> Document:
    found = curve.distances(study, results)
    title = f"{title_of(study.config)}: accuracy against cost, {study.config.epochs} epochs in full"
    currency = curve.currency_of(results)
    header = (
        "budget %", "method", *(f"{NAMES[c]} %" for c in _currencies(currency)), "accuracy %",
        f"to the control at equal {NAMES[currency]}", "at equal time", "p (Holm)", "visible",
        "cost where it is as good",
    )  # fmt: skip
    rows = [_row(study, results, one, currency) for one in found]
    settings = [
        (str(one.budget), one.arm, str(epochs), knobs.words(changes))
        for one in found
        for epochs, changes in [_chosen(one)]
    ]
    tables = [_overview(study, found), Table(header, rows)] if rows else []
    if settings:
        tables.append(Table(("budget %", "method", "epochs", "settings"), settings))
    return Document(title, tables, _notes(study, results, found, currency))


def _overview(study: Frontier, found: list[Distance]) -> Table:
    """A row a method, a column a budget: what it gains on the control at equal cost; and the mean
    over the budgets, paired by seed, of which more can be seen."""
    by_arm: dict[str, dict[int, Distance]] = {}
    for one in found:
        by_arm.setdefault(one.arm, {})[one.budget] = one
    rows = [
        ("control, accuracy %", *(
            shown(at[budget].accuracy, 2) if budget in at else "" for budget in study.budgets
        ))
        for at in [by_arm.pop(CONTROL, {})]
    ]  # fmt: skip
    rows = [(*row, "") for row in rows]

    def place(arm: str) -> float:
        gains = [one.gain.mean for one in by_arm[arm].values() if one.gain is not None]
        return -statistics.fmean(gains) if gains else math.inf

    for arm in sorted(by_arm, key=place):
        at = by_arm[arm]
        mean = estimate(curve.over_budgets(list(at.values())))
        rows.append(
            (arm, *(_gain(at.get(budget)) for budget in study.budgets), shown(mean, 2, sign=True))
        )
    budgets = (f"{budget} %" for budget in study.budgets)
    return Table(("points over the control", *budgets, "mean"), rows)


def _gain(one: Distance | None) -> str:
    if one is None or one.gain is None:
        return ""
    is_seen = one.adjusted is not None and one.adjusted < LEVEL
    return shown(one.gain, 2, sign=True) + "*" * is_seen


def _currencies(currency: str) -> tuple[str, ...]:
    return tuple(name for name in cost.CURRENCIES if name != "flops" or currency == "flops")


def _chosen(one: Distance) -> tuple[int, dict[str, object]]:
    entry: Entry = next(iter(one.entries.values()))
    return entry["epochs"], entry["settings"]


def _row(study: Frontier, results: Results, one: Distance, currency: str) -> tuple[str, ...]:
    return (
        str(one.budget), one.arm,
        *(_share(study, results, one, name) for name in _currencies(currency)),
        shown(one.accuracy, 2),
        shown(one.gain, 2, sign=True), shown(one.in_time, 2, sign=True),
        "" if one.adjusted is None else f"{one.adjusted:.2g}",
        "" if one.visible is None else f"{one.visible:.2f}",
        "" if one.relative is None else f"{one.relative:.2f}",
    )  # fmt: skip


def _share(study: Frontier, results: Results, one: Distance, currency: str) -> str:
    """Of what the control costs at the largest budget, as if that were 100 %."""
    largest = max(study.budgets)
    full = curve.costs_of(curve.finals(results, CONTROL, largest), currency)
    if not full:
        return ""
    of_full = statistics.fmean(full.values()) * 100 / largest
    spent = statistics.fmean(curve.costs_of(one.entries, currency).values())
    return f"{100 * spent / of_full:.1f}"


def _notes(study: Frontier, results: Results, found: list[Distance], currency: str) -> list[str]:
    notes = _verdicts(found)
    notes.append(
        "The control is ordinary training, one pass an epoch over all data, whose learning rate, "
        "weight decay, warm-up, label smoothing and schedule (with its shape), and augmentation of "
        f"images, are tuned at each budget with {study.control_trials} trials, and its learning "
        f"rate about the best of these with {study.trials}; a method is added to what that found, "
        f"with its own knobs and the learning rate tuned: each with {study.trials} more. All by "
        f"successive halving on {study.folds} of {folds.FOLDS} held-out fifths of the training "
        "data. The test data are looked at once, by the runs that are shown."
    )
    notes.append(
        f"Budgets are of one pass in each of {study.config.epochs} epochs, in {NAMES[currency]}"
        f"{_counted(currency)}. What a method is held against is the control's accuracy at the "
        "cost that it had itself, on straight lines in the logarithm of the cost, paired by seed; "
        "of what costs up to a quarter less than the cheapest control, at that one's, to the "
        "method's disadvantage."
    )
    for budget, other in curve.yardsticks(study, results).items():
        if other != budget:
            notes.append(
                f"At {budget} % the control has less than at {other} %, and methods are held "
                "against that."
            )
    notes.append(
        "Time is that of training, scoring and selection, at the median over the seeds of what a "
        "sample took."
    )
    notes.append(
        "p (Holm): of no difference to the control, two-sided, corrected for all methods and "
        f"budgets; a star says that it is below {LEVEL:g}. The mean over the budgets is paired by "
        "seed, and not corrected. Visible: the difference that so many "
        f"seeds would have shown with a probability of {curve.POWER:g}, uncorrected. Cost where it "
        "is as good: the method's over what the control costs at the same mean accuracy; below 1 "
        "the method saves."
    )
    notes += _regrets(found)
    notes += diverged_notes(study, results)
    notes.append(seeds_note(results))
    return [*notes, *last_notes(results, study.config)]


def _counted(currency: str) -> str:
    if currency == "flops":
        return " (those of products and convolutions, forward and backward, scoring included)"
    return " (one that is only scored counts a third)"


def _regrets(found: list[Distance]) -> list[str]:
    """What the autopilot loses to the best of each budget, the control's curve among them."""
    lost = []
    for one in found:
        if one.arm == AUTOPILOT and one.gain is not None:
            gains = {CONTROL: 0.0} | {
                other.arm: other.gain.mean
                for other in found
                if other.budget == one.budget and other.gain is not None
            }
            best = max(gains, key=lambda arm: gains[arm])
            regret = gains[best] - one.gain.mean
            lost.append(f"{regret:.2f} at {one.budget} % (to {best})")
    if not lost:
        return []
    return [
        "What cpfast train --budget loses, in points, to the best mean that was found, which is "
        f"the better for having been looked for: {', '.join(lost)}."
    ]


def _verdicts(found: list[Distance]) -> list[str]:
    """What stands above the curve, and what below, or that nothing does."""
    judged = [one for one in found if one.adjusted is not None and one.gain is not None]
    if not judged:
        return ["Too few seeds, or no method: nothing is said of any."]
    seen = [one for one in judged if one.adjusted is not None and one.adjusted < LEVEL]
    notes = []
    for sign, word in ((1, "above"), (-1, "below")):
        some = [
            f"{one.arm} at {one.budget} % ({one.gain.text(sign=True)} points)"
            for one in seen if one.gain is not None and sign * one.gain.mean > 0
        ]  # fmt: skip
        notes.append(
            f"Seen {word} the control's curve, at a level of {LEVEL:g} over all {len(judged)} "
            f"comparisons: {'; '.join(some) if some else 'none'}."
        )
    powers = [one.visible for one in judged if one.visible is not None]
    if powers:
        notes.append(
            f"Without that correction, a difference of {statistics.median(powers):.2f} points "
            "would have been visible in half of the comparisons."
        )
    return notes
