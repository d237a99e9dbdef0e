"""The tables and the notes of a comparison of arms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.compare import equal_time
from cpfast.studies.compare.verdict import (
    Summary,
    against_control,
    controls_note,
    summarise,
    verdict,
)
from cpfast.studies.document import (
    Document,
    Table,
    last_notes,
    plain,
    seeds_note,
    shown,
    title_of,
)
from cpfast.studies.store import Results
from cpfast.train import report

if TYPE_CHECKING:
    from cpfast.studies.compare.study import Comparison

QUIET = 1.5
COSTS = {"kwh": "energy, Wh", "co2e_kg": "CO2e, g", "cost": "cost"}


def document(study: Comparison, results: Results) -> Document:
    config = study.config
    summaries, control = summarise(results)
    tables = [_main_table(summaries, control)]
    extra = [key for key in COSTS if any(s.mean(key) is not None for s in summaries.values())]
    if extra:
        tables.append(_cost_table(results, summaries, extra))
    title = f"{title_of(config)}, {config.epochs} epochs, k = {config.repeats}"
    is_finished = len(results["runs"]) >= study.wanted(results)
    notes = [verdict(summaries, finished=is_finished)]
    if (against := against_control(summaries, control)) is not None:
        notes.append(against)
    return Document(title, tables, notes + _notes(study, results, summaries, control))


def _main_table(summaries: Mapping[str, Summary], control: str | None) -> Table:
    """Against the best control, or ordinary training of the same time, where that was run."""
    present = list(summaries.values())
    both = all(s.mean("forward_samples") == s.mean("backward_samples") for s in present)
    counts = ("forward_samples",) if both else ("forward_samples", "backward_samples")
    timed = any(s.to_equal is not None for s in present)
    header = (
        "arm", "accuracy %", "to full",
        *(["to k1@time"] if timed else [] if control is None else [f"to {control}"]),
        *(["samples"] if both else ["forward", "backward"]), "time s", "saved %",
    )  # fmt: skip
    digits = int(all(s.seconds is None or s.seconds.mean < 1000 for s in present))
    rows = [
        (
            s.arm,
            "diverged" if s.accuracy is None else s.accuracy.text() + " *" * bool(s.diverged),
            shown(s.to_full, 2, sign=True),
            *(
                [shown(s.to_equal, 2, sign=True)]
                if timed
                else []
                if control is None
                else [shown(s.to_control, 2, sign=True)]
            ),
            *(f"{s.mean(key):,.0f}" if s.entries else "" for key in counts),
            shown(s.seconds, digits),
            shown(s.saved, 1),
        )
        for s in present
    ]
    return Table(header, rows)


def _cost_table(results: Results, summaries: Mapping[str, Summary], keys: list[str]) -> Table:
    """Of a run, in the mean."""
    energies = [e["energy"] for e in results["runs"] if e["kwh"] is not None]
    sources = {p["source"] for e in energies for p in e["components"].values()} - {"none"}
    heads = dict(COSTS)
    if len(sources) == 1:
        heads["kwh"] += f" ({min(sources)})"
    rows = []
    for s in summaries.values():
        means = [(key, s.mean(key)) for key in keys]
        rows.append(
            (s.arm, *("not measured" if value is None
                      else plain(value if key == "cost" else 1000 * value)
                      for key, value in means))
        )  # fmt: skip
    return Table(("arm", *(heads[key] for key in keys)), rows)


def _notes(
    study: Comparison, results: Results, summaries: Mapping[str, Summary], control: str | None
) -> list[str]:
    notes = [seeds_note(results, {s.arm: len(s.entries) for s in summaries.values()})]
    notes.append("Differences in accuracy are in points.")
    if any(s.diverged and s.entries for s in summaries.values()):
        notes.append("* Over the seeds in which it did not diverge.")
    for s in summaries.values():
        notes += [f"{s.arm}, seed {seed}: {reason}." for seed, reason in s.diverged.items()]
    detector = summaries.get("detector")
    ends = [] if detector is None else [e["period_end"] for e in detector.entries.values()]
    if ends:
        told = ", ".join("not" if end is None else str(end) for end in ends)
        notes.append(f"The critical period ended after epoch: {told}.")
    if "fixed" in summaries:
        notes.append(f"fixed switches after epoch {study.at}.")
    referring = [arm for arm in summaries if study.known()[arm].takes_reference]
    if referring:
        by = "their losses alone"
        if study.config.reference is not None:
            name = Path(study.config.reference).name
            by = f"their losses and those of {name}, whose model and scores are not counted"
        notes.append(f"{', '.join(referring)}: tokens are chosen by {by}.")
    if control is not None:
        notes.append(controls_note(summaries, control))
    if any(s.to_equal is not None for s in summaries.values()):
        curve = ", ".join(arm for arm in summaries if equal_time.is_control(arm))
        notes.append(
            "To k1@time: against ordinary training of the time that the arm took, on straight "
            f"lines in the logarithm of time between {curve}, seed by seed; blank where a seed "
            "took less time, or more, than all of these. Time there is that of the samples, at "
            "the median over seeds of what one took in this arm."
        )
    notes.append("Accuracy is that of the last epoch.")
    notes += _time_notes(results, summaries)
    notes += sorted({n for e in results["runs"] for n in _cost_notes(e["energy"] or {})})
    return notes + last_notes(results, study.config)


def _time_notes(results: Results, summaries: Mapping[str, Summary]) -> list[str]:
    entries = [e for s in summaries.values() for e in s.entries.values()]
    prepared = [e["preparation_seconds"] for e in entries if e["preparation_seconds"] > 0]
    without = "evaluation and checkpoints"
    if prepared:
        without = (
            "evaluation, checkpoints, and compiling and capturing the step "
            f"(up to {plain(max(prepared))} s a run: a process compiles once)"
        )
    notes = [
        f"Time is training, scoring and selection, without {without}; that of an arm forked from "
        "full is its beginning, shared with full, plus the rest. Full and fixed are not charged "
        "for measuring the rotation; for scoring and selection every arm is charged alike."
    ]
    rates = [e["seconds"] / e["forward_samples"] for e in entries if e["forward_samples"]]
    if rates and max(rates) > QUIET * min(rates):
        notes.append(
            f"The time of a sample differs by up to {max(rates) / min(rates):.1f}x between runs, "
            "more than scoring costs: the machine was not quiet, so compare samples, not times."
        )
    sources = {report.energy_sources(e["energy"]) for e in results["runs"] if e["kwh"] is not None}
    if sources or any(e["cost"] is not None for e in entries):
        apart = ", without compiling and capturing" if prepared else ""
        read = f" ({'; '.join(sorted(sources))})" if sources else ""
        notes.append(
            f"Energy and cost are of the whole run, with evaluation and checkpoints{apart}{read}."
        )
    return notes


def _cost_notes(energy: Mapping[str, Any]) -> list[str]:
    """How CO2e and cost follow from what was metered, as energy.json has them."""
    notes = []
    if co2e := energy.get("co2e"):
        notes.append(
            f"CO2e is {co2e['source']}, by {co2e['grams_per_kwh']:g} g a kWh "
            f"({co2e['country'] or 'the mean of the world'})."
        )
    if cost := energy.get("cost"):
        prices = [
            f"{cost[key]:g} {unit}"
            for key, unit in (("price_kwh", "a kWh"), ("price_hour", "an hour"))
            if cost[key] is not None
        ]
        notes.append(f"Cost is {cost['source']}, at {' and '.join(prices)}.")
    return notes
