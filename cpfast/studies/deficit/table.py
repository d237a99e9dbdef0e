"""The tables and the notes of deficits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cpfast.studies.deficit import damage
from cpfast.studies.deficit.damage import Span
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
from cpfast.studies.store import Results

if TYPE_CHECKING:
    from cpfast.studies.deficit.study import Deficit


def document(study: Deficit, results: Results) -> Document:
    removal = Table(
        ("deficit", "until", "accuracy %", "clean %", "damage"),
        _rows(study, results, [(0, end) for end in study.removals], lambda s: str(s[1])),
    )
    onset = Table(
        ("deficit", "epochs", "accuracy %", "clean %", "damage"),
        _rows(study, results, study.windows(), lambda s: f"{s[0]}-{s[1]}"),
    )
    after = study.config.epochs
    title = f"{title_of(study.config)}: deficits, then {after} epochs of clean training"
    tables = [table for table in (removal, onset) if table.rows]
    return Document(title, tables, _notes(study, results))


def _rows(
    study: Deficit, results: Results, spans: Sequence[Span], name: Callable[[Span], str]
) -> list[tuple[str, ...]]:
    return [
        (
            deficit, name(span), shown(damage.accuracy(results, deficit, span), 2),
            shown(damage.clean(results, span[1]), 2),
            shown(damage.damage(results, deficit, span), 2, sign=True),
        )
        for deficit in study.deficits
        for span in spans
    ]  # fmt: skip


def _notes(study: Deficit, results: Results) -> list[str]:
    notes = []
    after, removals, windows = study.config.epochs, study.removals, study.windows()
    for deficit in study.deficits:
        if removals:
            last = (0, removals[-1])
            notes += finding(
                f"Damage by {deficit} until epoch {removals[-1]}, {after} epochs later",
                damage.damage(results, deficit, last),
            )
        if len(removals) > 1:
            notes += finding(
                f"Later removal of {deficit}, at epoch {removals[-1]} for {removals[0]}, changes "
                "the damage by",
                damage.change(results, deficit, (0, removals[0]), last),
            )
        if len(windows) > 1:
            notes += finding(
                f"Later onset of {study.window} epochs of {deficit}, at epoch {windows[-1][0]} for "
                f"{windows[0][0]}, changes the damage by",
                damage.change(results, deficit, windows[0], windows[-1]),
            )
    notes.append(
        "Damage: accuracy less that of clean training of as many epochs in all, paired by seed; "
        "negative where the deficit has cost points. A critical period would show as damage that "
        "grows with a later removal, and shrinks with a later onset."
    )
    notes.append(
        "Before the test the running statistics of normalisation are measured anew, over the clean "
        "data: what is left of a deficit is in the weights."
    )
    if study.config.schedule != "constant":
        notes.append(
            f"The rate follows the schedule {study.config.schedule} from the beginning, so what "
            "comes after a late deficit is trained at a lower rate: part of a damage may be that."
        )
    notes += diverged_notes(study, results)
    notes.append(
        f"Accuracy is that of the last epoch, {after} after the deficit's end, on the clean test "
        "data."
    )
    return [*notes, seeds_note(results), *last_notes(results, study.config)]
