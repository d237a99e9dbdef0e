"""Which settings an arm is given at a budget: successive halving on held-out training data.

All trials are trained without the first fifth of the training data and judged by it; the better
half of them without the second; and so on. Where two are equally accurate, that of the lower loss
is taken, and then the earlier one, of which the first has the defaults.

The control is tuned in two rounds, all of its knobs and then, about the best, its learning rate; a
method begins from what both have found.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from cpfast.studies.frontier import cost, knobs, methods
from cpfast.studies.frontier.knobs import Settings
from cpfast.studies.frontier.methods import AUTOPILOT, CONTROL, REFINED
from cpfast.studies.statistics import percent
from cpfast.studies.store import Entry, Results
from cpfast.train.config import Config

if TYPE_CHECKING:
    from cpfast.studies.frontier.study import Frontier

FINAL = -1
"""In place of a fold: all of the training data, and the test data."""


def rungs(count: int, folds: int) -> list[int]:
    """How many trials are trained without each fold.

    >>> rungs(8, 3), rungs(8, 5), rungs(1, 3)
    ([8, 4, 2], [8, 4, 2], [])
    """
    numbers: list[int] = []
    while count > 1 and len(numbers) < folds:
        numbers.append(count)
        count = math.ceil(count / 2)
    return numbers


def trials(study: Frontier, arm: str) -> list[Settings]:
    """The settings that are tried, of each budget the same."""
    if arm == AUTOPILOT:
        return [{}]
    if arm == CONTROL:
        own, count = knobs.of_control(study.reads), study.control_trials
    elif arm == REFINED:
        own, count = knobs.METHOD, study.trials
    else:
        own, count = methods.knobs_of(arm), study.trials
    return knobs.draw(own, count, study.config.seed, arm)


def left(study: Frontier, results: Results, arm: str, budget: int, fold: int) -> list[int]:
    """The trials that are to be trained without this fold; those before it are done."""
    numbers = list(range(len(trials(study, arm))))
    for rung in range(1, fold + 1):
        numbers = _ranked(results, arm, budget, numbers, rung)[: math.ceil(len(numbers) / 2)]
    return sorted(numbers)


def winner(study: Frontier, results: Results, arm: str, budget: int) -> int:
    """The trial that is kept; all of them are done."""
    numbers = list(range(len(trials(study, arm))))
    of_folds = rungs(len(numbers), study.folds)
    if not of_folds:
        return 0
    last = left(study, results, arm, budget, len(of_folds) - 1)
    return _ranked(results, arm, budget, last, len(of_folds))[0]


def _ranked(results: Results, arm: str, budget: int, numbers: list[int], folds: int) -> list[int]:
    """The best first, by the means over the first folds: of the accuracy, and of the loss where
    that is the same, as it often is on few samples."""
    accuracies: dict[int, list[float]] = {number: [] for number in numbers}
    losses: dict[int, list[float]] = {number: [] for number in numbers}
    for entry in of_arm(results, arm, budget):
        if entry["trial"] in accuracies and FINAL < entry["fold"] < folds:
            ended = entry["diverged"] is None
            accuracies[entry["trial"]].append(percent(entry) if ended else 0.0)
            loss = entry["test_loss"] if ended else None
            losses[entry["trial"]].append(math.inf if loss is None else loss)

    def place(number: int) -> tuple[float, float, int]:
        accuracy, loss = (statistics.fmean(found[number]) for found in (accuracies, losses))
        return -accuracy, loss, number

    return sorted(numbers, key=place)


def of_arm(results: Results, arm: str, budget: int) -> list[Entry]:
    return [e for e in results["runs"] if e["arm"] == arm and e["budget"] == budget]


def settings(
    study: Frontier, results: Results, arm: str, budget: int, trial: int, *, final: bool = False
) -> Settings:
    """What a trial changes of the configuration: a method's are those of the control's best, at
    the same budget, with its own.

    Args:
        final: of the control, what both of its rounds have found.
    """
    own = trials(study, arm)[trial]
    if arm == AUTOPILOT or (arm == CONTROL and not final):
        return own
    before = CONTROL if arm == REFINED else REFINED
    best = settings(study, results, before, budget, winner(study, results, before, budget))
    if arm == CONTROL:
        return best
    both = {**best, **own}
    if "lr" in both:
        both["lr"] = best.get("lr", 1.0) * own.get("lr", 1.0)
    return both


def configured(
    study: Frontier, results: Results, arm: str, budget: int, trial: int, *, final: bool = False
) -> Config:
    """The run of a trial, for so many epochs as cost what the budget allows; not the autopilot's.

    Args:
        final: with what is known once everything is tuned.
    """
    changes = settings(study, results, arm, budget, trial, final=final)
    epochs = study.epochs(budget)
    if arm in (CONTROL, REFINED):
        return knobs.configured(study.config, changes, epochs)
    share = relative_cost(study, results, arm, budget, trial, changes, final=final)
    return _with_method(study, arm, changes, max(1, round(epochs / share)))


def _with_method(study: Frontier, arm: str, changes: Settings, epochs: int) -> Config:
    own = {name: value for name, value in changes.items() if "." in name}
    rest = {name: value for name, value in changes.items() if "." not in name}
    return methods.with_method(knobs.configured(study.config, rest, epochs), arm, own)


def relative_cost(
    study: Frontier,
    results: Results,
    arm: str,
    budget: int,
    trial: int,
    changes: Settings,
    *,
    final: bool,
) -> float:
    """Of an epoch, against one of the control: as measured where this trial was trained before,
    else by what its recipe says, corrected by how far that was off for the first trial."""
    entries = [e for e in of_arm(results, arm, budget) if e["fold"] != FINAL and e["epochs"]]
    of_control = [e for e in of_arm(results, CONTROL, budget) if e["fold"] != FINAL and e["epochs"]]
    guessed = cost.guess(_with_method(study, arm, changes, study.epochs(budget)))
    if not of_control:
        return guessed
    currency = cost.main_currency([*entries, *of_control])
    unit = statistics.fmean(cost.cost(e, currency) / e["epochs"] for e in of_control)

    def measured(number: int) -> float | None:
        folds = [e for e in entries if e["trial"] == number and (final or e["fold"] == 0)]
        if not folds:
            return None
        return statistics.fmean(cost.cost(e, currency) / e["epochs"] for e in folds) / unit

    if (own := measured(trial)) is not None:
        return own
    first = measured(0)
    if first is None:
        return guessed
    before = settings(study, results, arm, budget, 0)
    return guessed * first / cost.guess(_with_method(study, arm, before, study.epochs(budget)))
