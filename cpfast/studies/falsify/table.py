"""The table and the notes of a falsification."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cpfast.studies.document import Document, Table, last_notes, seeds_note, shown, title_of
from cpfast.studies.falsify import firing
from cpfast.studies.falsify.null import NULL_RATES
from cpfast.studies.statistics import interval
from cpfast.studies.store import Results
from cpfast.train.config import LABELS, Config

if TYPE_CHECKING:
    from cpfast.studies.falsify.study import Falsification


def document(study: Falsification, results: Results) -> Document:
    config = study.config
    found, first = firing.cells(study, results), firing.earliest(config.criterion)
    rows = [
        (
            str(cell.setting.batch_size),
            f"{cell.setting.weight_decay:g}",
            str(cell.setting.total_epochs),
            *(_ends(cell.ends[labels], first) for labels in LABELS),
            shown(firing.paired_difference([cell], first).estimate, 1, sign=True),
            "never" if cell.null is None else _epoch(cell.null, first),
        )
        for cell in found
    ]
    if config.optimizer not in NULL_RATES:
        rows = [(*row[:-1], "none") for row in rows]
    header = ("batch", "decay", "T", *(f"{labels} labels" for labels in LABELS), "random - true",
              "null")  # fmt: skip
    title = f"{title_of(config)}: the epoch after which {config.criterion} ends the period"
    return Document(title, [Table(header, rows)], _notes(results, config, found, first))


def _epoch(end: int, first: int) -> str:
    return f"<= {first}" if end <= first else str(end)


def _ends(ends: Mapping[int, int | None], first: int) -> str:
    """Mean with interval; how many runs did not fire, and how many as early as the rule can."""
    fired = [end for end in ends.values() if end is not None]
    early, silent = sum(end <= first for end in fired), len(ends) - len(fired)
    if not fired:
        return "never" if silent else ""
    whole = early == len(fired)
    mean = f"<= {first}" if whole else interval(fired).text(1)
    parts = [f"{early} <= {first}"] * (early > 0 and not whole) + [f"{silent} never"] * bool(silent)
    return mean + (f" ({', '.join(parts)})" if parts else "")


def _notes(results: Results, config: Config, found: list[firing.Cell], first: int) -> list[str]:
    notes = []
    for labels in LABELS:
        ends = [end for cell in found for end in cell.ends[labels].values()]
        if ends:
            fired = [end for end in ends if end is not None]
            when = f", after {statistics.fmean(fired):.1f} epochs in the mean" if fired else ""
            notes.append(
                f"With {labels} labels the rule fired in {len(fired)} of {len(ends)} runs{when}."
            )
    ends = [end for cell in found for labels in LABELS for end in cell.ends[labels].values()]
    early = sum(end is not None and end <= first for end in ends)
    if early:
        notes.append(
            f"{early} of these fired after epoch {first}, the first that fills the rule's window, "
            f"and are shown as <= {first} and counted as {first} in means: when they would have "
            "fired is not known."
        )
    notes += _difference_notes(firing.paired_difference(found, first), first)
    for by, what in (("random", "random labels"), ("null", "the diffusion null")):
        notes += _match_notes(firing.match(found, by, first), by, what, first)
    notes.append(
        "Random labels can only be learned by heart: so far as the rule fires on them as on true "
        "ones, it does not see the learning of what generalises."
    )
    notes.append(
        "The null, D(t) = 1 - exp(-sum of lr wd / (1 - momentum)), holds for scale-invariant "
        "layers in equilibrium, which a fresh network is not in; a yardstick, not a model."
        if config.optimizer == "sgd"
        else "The null holds for scale-invariant layers in equilibrium, by AdamW's rate, lr wd."
        if config.optimizer == "adamw"
        else f"For {config.optimizer} no null is known here."
    )
    diverged = sum(e["diverged"] is not None for e in results["runs"])
    if diverged:
        notes.append(f"{diverged} runs diverged, and are left out.")
    return [*notes, seeds_note(results), *last_notes(results, config)]


def _difference_notes(difference: firing.Difference, first: int) -> list[str]:
    estimate, pairs, censored = difference
    notes = []
    if estimate is not None:
        epochs = f"{abs(estimate.mean):.1f}"
        when = (
            "as late as" if epochs == "0.0"
            else f"{epochs} epochs {'later' if estimate.mean > 0 else 'earlier'} than"
        )  # fmt: skip
        spread = (
            "one seed, so no interval" if estimate.half is None
            else f"paired difference {estimate.text(1, sign=True)}, 95 % interval over seeds"
        )  # fmt: skip
        notes.append(
            f"With random labels it fired {when} with true ones, in the mean of {pairs} pairs of "
            f"a setting and a seed in which both fired ({spread})."
        )
    if censored and estimate is None:
        notes.append(
            f"Random and true labels cannot be told apart: in all {censored} pairs of a setting "
            f"and a seed in which both fired, both did after epoch {first} at the latest."
        )
    elif censored:
        notes.append(
            f"Left out of that: {censored} pairs of which both fired after epoch {first} at the "
            "latest."
        )
    return notes


def _match_notes(matched: firing.Match, by: str, what: str, first: int) -> list[str]:
    if matched.ratio is None:
        return []
    orders = ""
    if matched.shared is not None and matched.rank is not None:
        orders = (
            f", the firing epochs of {what} and of true labels are in the same order so far as "
            f"r^2 of logarithms {matched.shared:.2f} and a rank correlation of {matched.rank:.2f} "
            "say. T, batch and decay move both, so this is no agreement in the epoch:"
        )
    settings = f"{matched.settings} setting{'s' * (matched.settings > 1)}"
    left = f" ({matched.censored} left out, both <= {first})" if matched.censored else ""
    return [f"Over {settings}{left}{orders} the median ratio, {by} / true, is {matched.ratio:.2f}."]
