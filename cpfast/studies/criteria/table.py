"""The table and the notes of what criteria are worth."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from cpfast.studies.criteria import properties
from cpfast.studies.criteria.properties import Firing
from cpfast.studies.document import (
    Document,
    Table,
    diverged_notes,
    last_notes,
    seeds_note,
    shown,
    title_of,
)
from cpfast.studies.statistics import Estimate
from cpfast.studies.store import Results

if TYPE_CHECKING:
    from cpfast.studies.criteria.study import Criteria


def document(study: Criteria, results: Results) -> Document:
    others = [name for name in study.setting_names if name != "base"]
    rows = []
    for name in study.watched(results):
        true, random = (properties.firing(study, results, name, labels)
                        for labels in ("true", "random"))  # fmt: skip
        seconds, samples = properties.cost(results, name)
        rows.append(
            (
                name, _fired(true), _when(true), _fired(random), _when(random),
                shown(properties.later(results, name)[0], 2, sign=True),
                *(_change(properties.change(results, name, setting)) for setting in others),
                f"{100 * seconds:.1f}", f"{100 * samples:.1f}",
            )
        )  # fmt: skip
    header = (
        "criterion", "true: fired", "after", "random: fired", "after", "random / true, log2",
        *others, "time %", "samples %",
    )  # fmt: skip
    title = f"{title_of(study.config)}: when each criterion ends the period"
    return Document(title, [Table(header, rows)], _notes(study, results))


def _fired(firing: Firing) -> str:
    early = f" ({firing.early} at once)" if firing.early else ""
    return f"{len(firing.ends)} of {firing.runs}{early}" if firing.runs else ""


def _when(firing: Firing) -> str:
    if not firing.ends:
        return ""
    share = 100 * statistics.median(firing.shares)
    return f"{statistics.median(firing.ends):g} ({share:.0f} %)"


def _change(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _notes(study: Criteria, results: Results) -> list[str]:
    notes = []
    for name in study.watched(results):
        true, random = (properties.firing(study, results, name, labels)
                        for labels in ("true", "random"))  # fmt: skip
        notes += _verdict(name, true, random, *properties.later(results, name))
    notes.append(
        "Fired: in how many of the runs; at once: at the first epoch at which the criterion can, "
        "so that it might have fired before. After: the median epoch, and its share of the planned "
        "ones. "
        "Random / true: how many times later it fires on random labels than on true ones, the "
        "logarithm to base 2, over pairs of a setting and a seed in which both fired, and not both "
        "at once; the interval is over the seeds' means."
    )
    notes.append(
        "The other columns are settings: how many times later than in the base it fires on true "
        "labels, the median over seeds; nothing where all fired at once. What ends with the "
        "learning itself hardly moves when the epochs planned are twice as many; what follows the "
        "schedule moves by 2."
    )
    notes.append(
        "Time and samples: of the criterion alone, over those of the training that it watches. "
        "What several measure is charged to the first of them. One that needs batches of its own "
        "is not asked any more once it has decided."
    )
    notes.append(
        "Random labels can only be learned by heart: a criterion that fires on them as on true "
        "ones does not see the learning of what generalises."
    )
    notes += diverged_notes(study, results)
    return [*notes, seeds_note(results), *last_notes(results, study.config)]


def _verdict(
    name: str, true: Firing, random: Firing, later: Estimate | None, pairs: int
) -> list[str]:
    """In words, whether labels make a difference to it."""
    if not true.runs or not random.runs:
        return []
    fired = len(true.ends) / true.runs, len(random.ends) / random.runs
    if fired[0] == 0:
        return [f"{name}: never fired on true labels."]
    if fired[1] == 0:
        return [f"{name}: never fired on random labels, and on true ones in {_fired(true)}."]
    if later is None:
        return [f"{name}: true and random labels cannot be told apart, for it fired at once."]
    if later.half is None:
        said = "one seed, from which nothing follows"
    elif not later.is_told_from_zero:
        said = "no difference was seen"
    else:
        said = f"{'later' if later.mean > 0 else 'earlier'} on random labels (seen)"
    return [
        f"{name}: fired on random labels in {_fired(random)}; {said}: "
        f"{2**later.mean:.2f} times as late, over {pairs} pairs."
    ]
