"""The table and the notes of warm starts."""

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
from cpfast.studies.statistics import Estimate, difference, estimate
from cpfast.studies.store import Results, accuracies

if TYPE_CHECKING:
    from cpfast.studies.warm_start.study import WarmStart


def against(results: Results, arm: str, other: str) -> Estimate | None:
    """Accuracy less that of another arm, in points, paired by seed."""
    return estimate(
        difference(accuracies(results, arm=arm), accuracies(results, arm=other)).values()
    )


def document(study: WarmStart, results: Results) -> Document:
    weights = {begin.arm: (begin.shrink, begin.noise) for begin in study.begins()}
    rows = []
    for arm in study.arms():
        shrink, noise = weights.get(arm, (0.0, 1.0))
        rows.append(
            (
                arm, f"{shrink:g}", f"{noise:g}",
                shown(estimate(accuracies(results, arm=arm).values()), 2),
                *("" if arm == other else shown(against(results, arm, other), 2, sign=True)
                  for other in ("scratch", "warm")),
                shown(estimate(_losses(results, arm)), 4),
            )
        )  # fmt: skip
    header = ("arm", "trained x", "fresh x", "accuracy %", "to scratch", "to warm", "train loss")
    title = f"{title_of(study.config)}: {100 * study.share:g} % of the data first, then all"
    return Document(title, [Table(header, rows)], _notes(study, results))


def _losses(results: Results, arm: str) -> list[float]:
    runs = [e for e in results["runs"] if e["arm"] == arm and e["diverged"] is None]
    return [e["train_loss"] for e in runs if e["train_loss"] is not None]


def _notes(study: WarmStart, results: Results) -> list[str]:
    notes = finding("Warm start against training from scratch", against(results, "warm", "scratch"))
    for begin in study.begins()[1:]:
        what = f"Shrunk to {begin.shrink:g} and perturbed by {begin.noise:g}, against"
        notes += finding(f"{what} the warm start", against(results, begin.arm, "warm"))
        notes += finding(f"{what} training from scratch", against(results, begin.arm, "scratch"))
    notes.append(
        f"first is trained on {100 * study.share:g} % of the data, the others on all of it, for as "
        "many epochs; they begin with so much of the weights of first, plus so much of fresh ones. "
        "That training is to be added to the cost of all but scratch."
    )
    notes.append(f"Images are {'augmented' if study.augment else 'not augmented'}.")
    notes += diverged_notes(study, results)
    notes.append(
        "Accuracy is that of the last epoch; before that test the running statistics of "
        "normalisation are measured anew, in all runs."
    )
    return [*notes, seeds_note(results), *last_notes(results, study.config)]
