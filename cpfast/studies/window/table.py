"""The table and the notes of windows of regularisation."""

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
from cpfast.studies.statistics import estimate
from cpfast.studies.store import Results
from cpfast.studies.window import effect

if TYPE_CHECKING:
    from cpfast.studies.window.study import RegularisationWindow


def document(study: RegularisationWindow, results: Results) -> Document:
    total, always = study.config.epochs, effect.always(results)
    rows = [("both", f"0-{total}", shown(estimate(always.values()), 2), "", "")]
    for name in study.regularisers:
        never = effect.never(results, name)
        for span in study.spans():
            values = effect.within(results, name, span)
            rows.append(
                (
                    name, "never" if span == (0, 0) else f"{span[0]}-{span[1]}",
                    shown(estimate(values.values()), 2),
                    shown(effect.against(values, always), 2, sign=True),
                    "" if span == (0, 0) else shown(effect.against(values, never), 2, sign=True),
                )
            )  # fmt: skip
    header = ("regulariser", "on in epochs", "accuracy %", "to always", "to never")
    title = f"{title_of(study.config)}: regularised in some of {total} epochs"
    return Document(title, [Table(header, rows)], _notes(study, results))


def _notes(study: RegularisationWindow, results: Results) -> list[str]:
    notes, always, half = [], effect.always(results), effect.middle(study)
    for name in study.regularisers:
        never = effect.never(results, name)
        early, late = (effect.within(results, name, span)
                       for span in ((0, half), (half, study.config.epochs)))  # fmt: skip
        whole = effect.against(always, never)
        notes += finding(f"All of the {name}, against none", whole)
        notes += finding(f"Only until epoch {half}, against always", effect.against(early, always))
        notes += finding(f"Only until epoch {half}, against never", effect.against(early, never))
        notes += finding(f"Only from epoch {half} on, against never", effect.against(late, never))
        notes += finding(f"Only until epoch {half}, against only from then on",
                         effect.against(early, late))  # fmt: skip
        if whole is not None and whole.half is not None and not whole.is_told_from_zero:
            notes.append(
                f"So nothing follows here on when {name} matters: that it does at all is not seen."
            )
    notes.append(
        "A critical period would show as no loss where it is only on early, and no gain where it "
        "is only on late. What is not seen may still be there, within the interval."
    )
    if study.config.schedule != "constant":
        notes.append(
            f"The learning rate falls (--schedule {study.config.schedule}), and what is on late "
            "acts on smaller steps: that it is worth less is no evidence of a critical period by "
            "itself."
        )
    notes.append(
        f"The weight decay is {study.config.weight_decay:g}, of kernels; augmentation is rotation "
        f"and shift{' and mirroring' if study.config.flip else ''}. Each is tried with the other "
        "on throughout."
    )
    notes += diverged_notes(study, results)
    notes.append(
        "Accuracy is that of the last epoch; before that test the running statistics of "
        "normalisation are measured anew, in all runs."
    )
    return [*notes, seeds_note(results), *last_notes(results, study.config)]
