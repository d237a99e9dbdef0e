"""The tables and the notes of an enlightenment period."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpfast.studies.document import (
    Document,
    Table,
    diverged_notes,
    finding,
    last_notes,
    seeds_note,
    shown,
    title_of,
)
from cpfast.studies.enlightenment import effect
from cpfast.studies.enlightenment.arms import (
    ARMS,
    BOOST,
    FIRST,
    MIXUP,
    ORDINARY,
    PAUSE,
    RANDOM,
    REMOVAL,
    Run,
    early,
    late,
)
from cpfast.studies.enlightenment.order import HIGH, LOW
from cpfast.studies.statistics import difference, estimate
from cpfast.studies.store import Results

if TYPE_CHECKING:
    from cpfast.studies.enlightenment.study import Enlightenment


def document(study: Enlightenment, results: Results) -> Document:
    runs = sorted(study.runs(), key=lambda run: (ARMS.index(run.arm), *run[1:]))
    controls = [run for run in runs if run.arm not in FIRST]
    held = [run.arm for run in controls] + [RANDOM] * (REMOVAL in study.strategies)
    accuracy = Table(
        ("arm", "in epochs", "accuracy %", *(f"to {arm}" for arm in held)),
        [_row(results, run, held) for run in runs],
    )
    tables = [accuracy, _milestones(results, controls), _traces(results, controls)]
    title = f"{title_of(study.config)}: other training data in some of {study.config.epochs} epochs"
    return Document(title, [table for table in tables if table.rows], _notes(study, results))


def _row(results: Results, run: Run, held: list[str]) -> tuple[str, ...]:
    """With its difference to each control."""
    differences = {other.arm: effect.against(results, run, other) for other in effect.controls(run)}
    return (
        run.arm, f"{run.begin}-{run.end}" if run.arm in FIRST else "all",
        shown(estimate(effect.accuracy(results, run).values()), 2),
        *(shown(differences.get(arm), 2, sign=True) for arm in held),
    )  # fmt: skip


def _milestones(results: Results, controls: list[Run]) -> Table:
    names = ("ordering", "ordered", "steepest", "half", "half_way")
    rows = []
    for run in controls:
        orders = effect.along(results, run.arm, "order")
        if orders:
            rows.append(
                (
                    run.arm, shown(orders[0], 3), shown(orders[-1], 3),
                    *(_when(results, run.arm, name) for name in names),
                )
            )  # fmt: skip
    header = (
        "arm", "order at first", "at the end", "disordered until", "ordered from",
        "rises most at", "50 % at", "half way at",
    )  # fmt: skip
    return Table(header, rows)


def _when(results: Results, arm: str, milestone: str) -> str:
    """Over which seeds, where some do not get there."""
    found, count = effect.when(results, arm, milestone), len(effect.traced(results, arm))
    some = f" ({len(found)} of {count} seeds)" if 0 < len(found) < count else ""
    return f"{shown(estimate(found.values()), 2)}{some}"


def _traces(results: Results, controls: list[Run]) -> Table:
    """Each at the beginning, then about twice as late each time, and at the end."""
    epochs = [e.mean for e in effect.along(results, ORDINARY, "epoch")]
    columns = [
        (f"{run.arm}: {name}", effect.along(results, run.arm, name))
        for run in controls
        for name in ("order", "accuracy")
    ]
    columns = [(name, values) for name, values in columns if values]
    rows, due = [], 0.0
    for number, epoch in enumerate(epochs):
        if epoch >= due or number == len(epochs) - 1:
            due = 2 * epoch
            values = [f"{column[number].mean:.3f}" for _, column in columns]
            rows.append((f"{epoch:.3g}", *values))
    return Table(("epoch", *(name for name, _ in columns)), rows)


# --- the notes ------------------------------------------------------------------------------


def _notes(study: Enlightenment, results: Results) -> list[str]:
    notes = []
    for strategy in study.strategies:
        short = effect.period(study, results, strategy)
        longest = early(strategy, study.lengths[-1])
        for run in dict.fromkeys((short, longest)):
            notes += _of_period(study, results, run)
        if short != longest:
            notes += finding(
                f"{WHAT[strategy]} until epoch {longest.end} for {short.end} changes accuracy by",
                effect.against(results, longest, short),
            )
    if {PAUSE, BOOST} & set(study.strategies):
        notes += finding("Mixup throughout, against none",
                         effect.against(results, Run(MIXUP), Run(ORDINARY)))  # fmt: skip
    notes += _of_order(study, results)
    if {PAUSE, BOOST} & set(study.strategies):
        notes.append(
            f"Mixup is of alpha {study.alpha:g}; boost, in its epochs, of alpha {study.boost:g}."
        )
    if REMOVAL in study.strategies:
        notes.append(
            f"removal leaves out the {study.count_removed(results['train_size'])} samples of the "
            "highest loss, as training noted it last, in each epoch but the first, when none is "
            "noted yet; random as many, drawn anew each epoch. Both shorten the epoch, so against "
            "ordinary training the smaller volume counts too."
        )
    if study.config.schedule not in ("step", "constant"):
        notes.append(
            f"The rate follows the schedule {study.config.schedule} from the beginning, so a later "
            "period is trained at another rate: part of a difference may be that."
        )
    notes += diverged_notes(study, results)
    notes.append(
        "Accuracy is that of the last epoch; before that test the running statistics of "
        "normalisation are measured anew, in all runs."
    )
    return [*notes, seeds_note(results), *last_notes(results, study.config)]


def _of_period(study: Enlightenment, results: Results, run: Run) -> list[str]:
    what, notes = f"{WHAT[run.arm]} until epoch {run.end}, against", []
    for control in effect.controls(run):
        notes += finding(f"{what} {OTHER[control.arm]}", effect.against(results, run, control))
        if control.arm == RANDOM:
            notes += finding(f"As many at random until epoch {run.end}, against {OTHER[ORDINARY]}",
                             effect.against(results, control, Run(ORDINARY)))  # fmt: skip
    if run.end in study.late_of(run.arm):
        later = late(run.arm, run.end, study.config.epochs)
        notes += finding(f"{what} the same in epochs {later.begin} to {later.end}",
                         effect.against(results, run, later))  # fmt: skip
    return notes


def _of_order(study: Enlightenment, results: Results) -> list[str]:
    notes = [
        "The order parameter is this project's, for the paper's could not be read: the share of "
        "the test outputs' variance (of logits) that lies between the classes, corrected so that "
        "it is 0 on average where there is no order, and 1 where each class has one output. "
        f"Disordered: below {100 * LOW:g} % of the way from its value before the first step to "
        f"that at the end; ordered: from {100 * HIGH:g} % on. Both values depend on the data and "
        "the network: images of a class are alike, and so are their first outputs."
    ]
    half = effect.when(results, ORDINARY, "half_way")
    reached = effect.half_way(results)
    if reached is not None:
        epoch = estimate(reached.values())
        if max(study.lengths) >= max(reached.values()):
            which = "The shorter of the periods above is the shortest that contains it"
        else:
            which = "None of the periods above is so long"
        notes.append(
            "The paper's period is the time until accuracy is about 50 %; half way from chance, "
            f"which is near it, is reached after {shown(epoch, 2)} epochs. {which} with every seed."
        )
    elif effect.traced(results, ORDINARY):
        notes.append(
            "Accuracy does not get half way from chance with every seed: none of the periods above "
            "is the paper's, which is the time until it is about 50 %."
        )
    for milestone, what in (
        ("steepest", "The steepest rise of the order"), ("ordered", "That outputs are ordered")
    ):  # fmt: skip
        found = difference(effect.when(results, ORDINARY, milestone), half)
        notes += finding(f"{what} comes after accuracy is half way from chance by",
                         estimate(found.values()), "epochs")  # fmt: skip
    for milestone, what in (
        ("ordered", "the outputs are ordered"), ("half_way", "accuracy is half way from chance"),
    ):  # fmt: skip
        later = difference(
            effect.when(results, MIXUP, milestone), effect.when(results, ORDINARY, milestone)
        )
        notes += finding(f"With mixup {what} later by", estimate(later.values()), "epochs")
    return notes


WHAT = {
    PAUSE: "Mixup paused",
    BOOST: "Mixup of the larger alpha",
    REMOVAL: "Samples of high loss removed",
}
OTHER = {
    MIXUP: "mixup throughout", ORDINARY: "ordinary training", RANDOM: "as many removed at random"
}  # fmt: skip
