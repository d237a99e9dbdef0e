"""A document of tables and notes as text and as Markdown, and what all studies say."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cpfast.studies import environment
from cpfast.studies.statistics import Estimate
from cpfast.studies.store import Entry, Results, begun_seeds, progress, study_of
from cpfast.studies.study import Study
from cpfast.train import report
from cpfast.train.config import Config

WRAP = textwrap.TextWrapper(
    width=100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
)
ONE_SEED = "One seed: no interval, and no conclusion from small differences."


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
        # A number stays with its percent sign.
        notes = [WRAP.fill(n.replace(" %", "\xa0%")).replace("\xa0", " ") for n in self.notes]
        return "\n".join([self.title, "\n\n".join(tables), *notes])

    def markdown(self) -> str:
        parts = [f"# {self.title}"]
        for header, rows in self.tables:
            rule = ["---", *["---:"] * (len(header) - 1)]
            lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
            # A star alone would begin emphasis.
            parts.append("\n".join(lines).replace("*", "\\*"))
        parts.append("\n".join(f"- {note}" for note in self.notes).replace("*", "\\*"))
        return "\n\n".join(parts) + "\n"


def document(results: Results) -> Document:
    """Of whichever study."""
    made = study_of(results).document(results)
    done, wanted = progress(results)
    if done < wanted:
        made = made._replace(title=f"{made.title}: {done} of {wanted} runs, unfinished")
    return made


def entry_line(study: Study, entry: Entry) -> str:
    """One run that has just ended."""
    what = f"seed {entry['seed']}  {study.label(entry)}"
    if entry["diverged"] is not None:
        return f"{what}  diverged: {entry['diverged']}"
    return (
        f"{what}  {study.outcome(entry)}  {entry['forward_samples']:>11,} samples  "
        f"{entry['seconds']:7.1f} s"
    )


def title_of(config: Config) -> str:
    return f"{report.data_name(config)}, {config.model}"


def seeds_note(results: Results, counts: Mapping[str, int] | None = None) -> str:
    """What the means are over; `counts` is how many seeds each arm has, which may differ."""
    seeds = len(begun_seeds(results))
    if seeds == 1:
        return ONE_SEED
    fewer = {name: count for name, count in (counts or {}).items() if count < seeds}
    but = f" ({', '.join(f'{name}: {count}' for name, count in fewer.items())})" if fewer else ""
    return (
        f"Means and 95 % intervals (t distribution) over {seeds} seeds{but}; differences are "
        "paired by seed."
    )


def diverged_notes(study: Study, results: Results) -> list[str]:
    """Which runs did not reach their end, and why."""
    return [
        f"{' '.join(study.label(e).split())}, seed {e['seed']}: {e['diverged']}."
        for e in results["runs"]
        if e["diverged"] is not None
    ]


def last_notes(results: Results, config: Config) -> list[str]:
    """Where it ran, and what digits are good for."""
    notes = environment.notes(results["environments"])
    if config.data == "digits":
        notes.append("On digits this shows the mechanism, not a benefit.")
    return notes


def finding(what: str, estimate: Estimate | None, unit: str = "points") -> list[str]:
    """A note that says of a difference whether it was seen; none of no difference."""
    if estimate is None:
        return []
    if estimate.half is None:
        said = "one seed, from which nothing follows"
    elif estimate.is_told_from_zero:
        said = "seen"
    else:
        said = "not seen, for the interval contains 0"
    return [f"{what}: {estimate.text(sign=True)} {unit} ({said})."]


def shown(estimate: Estimate | None, digits: int, sign: bool = False) -> str:
    return "" if estimate is None else estimate.text(digits, sign)


def plain(value: float) -> str:
    """Three digits, and from 100 on whole numbers: never 1e+03."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.3g}"
