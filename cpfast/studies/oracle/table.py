"""The tables and the notes of an oracle sweep."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cpfast.studies.document import Document, Table, last_notes, seeds_note, title_of
from cpfast.studies.oracle import regret
from cpfast.studies.statistics import interval, percent
from cpfast.studies.store import Results

if TYPE_CHECKING:
    from cpfast.studies.oracle.study import Oracle


def document(study: Oracle, results: Results) -> Document:
    config = study.config
    found = regret.sweeps(study, results)
    judged = regret.judge(found)
    picks = Table(
        ("setting", "rule", "pick", "accuracy %", "used %", "oracle", "regret", "capped",
         "capped regret"),
        [
            (
                r.setting, r.criterion, _epochs(r.picks), interval(r.accuracies).text(),
                f"{statistics.fmean(r.shares):.0f}", _epochs(r.oracles),
                interval(r.regrets).text(sign=True), _epochs(r.cheap_oracles),
                interval(r.cheap_regrets).text(sign=True),
            )
            for r in judged.found
        ],
    )  # fmt: skip
    rows = []
    for sweep in found:
        for epoch in sweep.common():
            entries = list(sweep.runs[epoch].values())
            what = {0: " (k1)", sweep.total: " (full)"}.get(epoch, "")
            rows.append(
                (
                    sweep.setting,
                    f"{epoch}{what}",
                    interval([percent(e) for e in entries]).text(),
                    f"{statistics.fmean(e['forward_samples'] for e in entries):,.0f}",
                )
            )
    sweep_table = Table(("setting", "switch after", "accuracy %", "samples"), rows)
    title = f"{title_of(config)}: k = {config.repeats} to 1 after each of some epochs"
    tables = [picks, sweep_table] if judged.found else [sweep_table]
    return Document(title, tables, _notes(study, results, judged))


def _notes(study: Oracle, results: Results, judged: regret.Regrets) -> list[str]:
    notes = []
    settings = len(study.setting_names)
    for cheap in (False, True):
        for criterion, (estimate, over) in regret.overall(study, results, cheap).items():
            notes.append(
                f"{criterion}: {'capped regret' if cheap else 'regret'} "
                f"{estimate.text(sign=True, unit=' points')} in the mean over {over} of "
                f"{settings} settings."
            )
    if judged.by_others:
        notes.append(
            "A seed's oracle is the switch epoch that is best in the mean over the other seeds: "
            "the best of noisy means would be too good. Regrets are in points, paired by seed, and "
            "negative where the pick did better. Chosen from a few noisy seeds, the oracle is "
            "itself somewhat poor, so regrets are somewhat too small."
        )
    else:
        notes.append(
            "One seed: the oracle is the plain maximum of single runs, so the regret, in points, "
            "is too large; no interval."
        )
    if judged.skipped:
        notes.append(
            f"Not judged, with one complete seed and so no other to choose by: "
            f"{', '.join(judged.skipped)}."
        )
    notes.append(
        "used: samples, in % of full's. capped: the oracle among the switch epochs that use no "
        "more samples than the pick."
    )
    for e in results["runs"]:
        if e["diverged"] is not None:
            notes.append(
                f"{e['setting']}, switch {e['switch']}, seed {e['seed']}: {e['diverged']}."
            )
    notes.append("Accuracy is that of the last epoch, on the test data.")
    notes.append("Epochs are from the first to the last of the seeds where these differ.")
    if judged.by_others:
        notes.append(seeds_note(results))
    return notes + last_notes(results, study.config)


def _epochs(values: Sequence[int]) -> str:
    first, last = min(values), max(values)
    return str(first) if first == last else f"{first}-{last}"
