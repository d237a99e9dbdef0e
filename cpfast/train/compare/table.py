"""What a comparison came to, with what may be concluded from it: as text and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpfast.detection import CriticalPeriodDetector
from cpfast.train import report
from cpfast.train.compare import falsify, oracle
from cpfast.train.compare.plan import RESULTS, begun_seeds
from cpfast.train.compare.statistics import Estimate, Summary, interval, summarise, verdict
from cpfast.train.config import LABELS, Config

Results = Mapping[str, Any]
QUIET = 1.5
NO_SEEDS = "One seed: no interval, and no conclusion from small differences."


class Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Document(NamedTuple):
    """A title, tables, and what must be said beside them."""

    title: str
    tables: list[Table]
    notes: list[str]

    def text(self) -> str:
        tables = [report.text_table(t.header, t.rows) for t in self.tables]
        return "\n".join([self.title, "\n\n".join(tables), *self.notes])

    def markdown(self) -> str:
        parts = [f"# {self.title}"]
        for header, rows in self.tables:
            rule = ["---", *["---:"] * (len(header) - 1)]
            lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
            parts.append("\n".join(lines))
        parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"


def document(results: Results, wanted: int) -> Document:
    """Of a comparison of any kind; `wanted` is how many runs it is to have."""
    make = {"arms": _arms, "falsify": _falsify, "oracle": _oracle}[results["kind"]]
    made = make(results)
    done = len(results["runs"])
    if done < wanted:
        made = made._replace(title=f"{made.title}: {done} of {wanted} runs, unfinished")
    return made


def entry_line(entry: Mapping[str, Any]) -> str:
    """One run that has just ended."""
    if "arm" in entry:
        what = f"{entry['arm']:<18}"
    elif "labels" in entry:
        what = (
            f"batch {entry['batch_size']:>4}, weight decay {entry['weight_decay']:<7g}, "
            f"T {entry['total_epochs']:>4}, {entry['labels']:<6} labels"
        )
    else:
        what = f"{entry['setting']:<13}, k = 1 after epoch {entry['switch']:>4}"
    if entry["diverged"] is not None:
        return f"seed {entry['seed']}  {what}  diverged: {entry['diverged']}"
    if "labels" in entry:
        end = entry["period_end"]
        came = "never fired" if end is None else f"fired after epoch {end}"
    else:
        came = f"{100 * entry['test_accuracy']:6.2f} %"
    return (
        f"seed {entry['seed']}  {what}  {came}  {entry['forward_samples']:>11,} samples  "
        f"{entry['seconds']:7.1f} s"
    )


# --- arms -----------------------------------------------------------------------------------


def _arms(results: Results) -> Document:
    config = _config(results)
    summaries, control = summarise(results)
    present = list(summaries.values())
    both = all(s.mean("forward_samples") == s.mean("backward_samples") for s in present)
    counts = ("samples",) if both else ("samples forward", "samples backward")
    extra = {
        title: key
        for title, key in (("energy Wh", "kwh"), ("CO2e g", "co2e_kg"), ("cost", "cost"))
        if any(s.mean(key) is not None for s in present)
    }
    header = (
        "arm", "accuracy %", "to full, points",
        *(() if control is None else (f"to {control}, points",)),
        *counts, "time s", "time saved %", *extra,
    )  # fmt: skip
    rows = []
    for s in present:
        rows.append(
            (
                s.arm,
                _accuracy(s),
                _shown(s.to_full, 2, sign=True),
                *(() if control is None else (_shown(s.to_control, 2, sign=True),)),
                *(
                    f"{s.mean(key):,.0f}" if s.entries else ""
                    for key in ("forward_samples", "backward_samples")[: len(counts)]
                ),
                _shown(s.seconds, 1),
                _shown(s.saved, 1),
                *(_costs(s.mean(key), key) for key in extra.values()),
            )
        )
    title = f"{_title(config)}, {config.epochs} epochs, k = {config.repeats}"
    return Document(title, [Table(header, rows)], _arm_notes(results, config, summaries, control))


def _accuracy(s: Summary) -> str:
    lost = f"diverged in {len(s.diverged)} of {len(s.diverged) + len(s.entries)}"
    if s.accuracy is None:
        return "diverged"
    return s.accuracy.text() + (f" ({lost})" if s.diverged else "")


def _costs(value: float | None, key: str) -> str:
    if value is None:
        return "not measured"
    return f"{value if key == 'cost' else 1000 * value:.3g}"


def _arm_notes(
    results: Results, config: Config, summaries: Mapping[str, Summary], control: str | None
) -> list[str]:
    notes = [verdict(summaries), _seeds_note(results)]
    for s in summaries.values():
        notes += [f"{s.arm}, seed {seed}: {reason}." for seed, reason in s.diverged.items()]
    detector = summaries.get("detector")
    ends = [] if detector is None else [e["period_end"] for e in detector.entries.values()]
    if ends:
        shown = ", ".join("not" if end is None else str(end) for end in ends)
        notes.append(f"The critical period ended after epoch: {shown}.")
    if "fixed" in summaries:
        notes.append(f"fixed switches after epoch {results['at']}.")
    if control is not None:
        notes.append(
            f"{control} is the control of the highest mean accuracy among those run; they detect "
            "nothing. It is chosen after the fact, so a little too good."
        )
    notes.append("Accuracy is that of the last epoch.")
    notes.append(
        "Time is training, scoring and selection, without evaluation; that of an arm forked from "
        "full is its beginning, shared with full, plus the rest. Full and fixed are not charged "
        "for measuring the rotation."
    )
    rates = [
        e["seconds"] / e["forward_samples"]
        for s in summaries.values()
        for e in s.entries.values()
        if e["forward_samples"]
    ]
    if rates and max(rates) > QUIET * min(rates):
        notes.append(
            f"The time of a sample differs by up to {max(rates) / min(rates):.1f}x between runs, "
            "more than scoring costs: the machine was not quiet, so compare samples, not times."
        )
    sources = {report.energy_sources(e["energy"]) for e in results["runs"] if e["kwh"] is not None}
    if sources:
        notes.append(f"Energy includes evaluation ({'; '.join(sorted(sources))}).")
    notes += sorted({n for e in results["runs"] for n in _cost_notes(e["energy"] or {})})
    if config.data == "digits":
        notes.append("On digits this shows the mechanism, not a benefit.")
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


# --- falsification --------------------------------------------------------------------------


def _falsify(results: Results) -> Document:
    config = _config(results)
    found = falsify.cells(results)
    rows = []
    for cell in found:
        setting = cell.setting
        rows.append(
            (
                str(setting.batch_size),
                f"{setting.weight_decay:g}",
                str(setting.total_epochs),
                *(_ends(cell.ends[labels]) for labels in LABELS),
                _difference(cell),
                "none" if cell.null is None else str(cell.null),
            )
        )
    header = ("batch", "weight decay", "T", *(f"{labels} labels" for labels in LABELS),
              "random - true", "diffusion null")  # fmt: skip
    title = f"{_title(config)}: the epoch after which {config.criterion} ends the period"
    return Document(title, [Table(header, rows)], _falsify_notes(results, config, found))


def _ends(ends: Mapping[int, int | None]) -> str:
    """Mean with interval; how many runs did not fire."""
    fired = [end for end in ends.values() if end is not None]
    silent = len(ends) - len(fired)
    if not fired:
        return "never" if silent else ""
    return interval(fired).text(1) + (f" (never in {silent} of {len(ends)})" if silent else "")


def _difference(cell: falsify.Cell) -> str:
    estimate, _ = falsify.paired_difference([cell])
    return _shown(estimate, 1, sign=True)


def _falsify_notes(results: Results, config: Config, found: list[falsify.Cell]) -> list[str]:
    notes = []
    for labels in LABELS:
        ends = [end for cell in found for end in cell.ends[labels].values()]
        if ends:
            fired = [end for end in ends if end is not None]
            when = f", after {statistics.fmean(fired):.1f} epochs in the mean" if fired else ""
            notes.append(
                f"With {labels} labels the rule fired in {len(fired)} of {len(ends)} runs{when}."
            )
    first = CriticalPeriodDetector(config.criterion).window
    ends = [end for cell in found for labels in LABELS for end in cell.ends[labels].values()]
    if config.criterion == "slope45" and first in ends:
        notes.append(
            f"{ends.count(first)} of these fired after epoch {first}, the first that fills the "
            "rule's window: what they have in common there says nothing."
        )
    estimate, pairs = falsify.paired_difference(found)
    if estimate is not None:
        notes.append(
            f"With random labels it fired {abs(estimate.mean):.1f} epochs "
            f"{'later' if estimate.mean >= 0 else 'earlier'} than with true ones, in the mean of "
            f"{pairs} pairs of a setting and a seed in which both fired"
            + (
                f" (paired difference {estimate.text(1, sign=True)}, 95 % interval over seeds)."
                if estimate.half is not None
                else "; one seed, so no interval."
            )
        )
    for by, what in (("random", "random labels"), ("null", "the diffusion null")):
        matched = falsify.match(found, by)
        if matched.shared is not None and matched.rank is not None:
            notes.append(
                f"Over {matched.settings} settings, the firing epochs of {what} match "
                f"{100 * matched.shared:.0f} % of the variance of those with true labels "
                f"(r^2 of logarithms; rank correlation {matched.rank:.2f})."
            )
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
    notes.append(_seeds_note(results))
    return notes


# --- oracle ---------------------------------------------------------------------------------


def _oracle(results: Results) -> Document:
    config = _config(results)
    found = oracle.sweeps(results)
    judged = [
        (
            r.setting, r.criterion, _numbers(r.picks), interval(r.accuracies).text(),
            f"{statistics.fmean(r.shares):.0f}", _numbers(r.oracles),
            interval(r.regrets).text(sign=True), _numbers(r.cheap_oracles),
            interval(r.cheap_regrets).text(sign=True),
        )
        for sweep in found
        for r in oracle.regrets(sweep)
    ]  # fmt: skip
    picks = Table(
        ("setting", "criterion", "pick", "accuracy %", "samples, % of full", "oracle",
         "regret, points", "oracle within these samples", "regret, points"),
        judged,
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
                    interval([100 * e["test_accuracy"] for e in entries]).text(),
                    f"{statistics.fmean(e['forward_samples'] for e in entries):,.0f}",
                )
            )
    sweep_table = Table(("setting", "switch after", "accuracy %", "samples"), rows)
    title = f"{_title(config)}: k = {config.repeats} to 1 after each of some epochs"
    tables = [picks, sweep_table] if judged else [sweep_table]
    return Document(title, tables, _oracle_notes(results, config))


def _oracle_notes(results: Results, config: Config) -> list[str]:
    notes = []
    for cheap in (False, True):
        for criterion, estimate in oracle.overall(results, cheap).items():
            notes.append(
                f"{criterion}: regret {estimate.text(sign=True, unit=' points')} in the mean over "
                f"settings{', at no more samples than the pick used' if cheap else ''}."
            )
    if len(begun_seeds(results)) > 1:
        notes.append(
            "A seed's oracle is the switch epoch that is best in the mean over the other seeds: "
            "the best of noisy means would be too good. Regrets are paired by seed, and negative "
            "where the pick did better."
        )
    else:
        notes.append(
            "One seed: the oracle is the plain maximum of single runs, so the regret is too "
            "large; no interval."
        )
    diverged = [e for e in results["runs"] if e["diverged"] is not None]
    for e in diverged:
        notes.append(f"{e['setting']}, switch {e['switch']}, seed {e['seed']}: {e['diverged']}.")
    notes.append("Accuracy is that of the last epoch, on the test data.")
    notes.append("Epochs of picks and oracles are given by seed where the seeds differ.")
    if len(begun_seeds(results)) > 1:
        notes.append(_seeds_note(results))
    if config.data == "digits":
        notes.append("On digits this shows the mechanism, not a benefit.")
    return notes


# --- their parts ----------------------------------------------------------------------------


def _config(results: Results) -> Config:
    return Config.from_dict(results["config"], Path(RESULTS))


def _title(config: Config) -> str:
    return f"{report.data_name(config)}, {config.model}"


def _seeds_note(results: Results) -> str:
    seeds = len(begun_seeds(results))
    if seeds == 1:
        return NO_SEEDS
    return (
        f"Means and 95 % intervals (t distribution) over {seeds} seeds; differences are paired "
        "by seed."
    )


def _shown(estimate: Estimate | None, digits: int, sign: bool = False) -> str:
    return "" if estimate is None else estimate.text(digits, sign)


def _numbers(values: Sequence[int]) -> str:
    """Each value once if they are all the same."""
    return ", ".join(map(str, values if len(set(values)) > 1 else values[:1]))
