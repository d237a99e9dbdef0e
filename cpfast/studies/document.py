"""A document of tables and notes as text and as Markdown, and what all kinds say."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpfast.train import report
from cpfast.train.compare import environment
from cpfast.train.compare.results import plan_of
from cpfast.train.compare.runner import RESULTS, begun_seeds
from cpfast.train.compare.statistics import Estimate
from cpfast.train.config import Config

Results = Mapping[str, Any]
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


def progress(results: Results) -> tuple[int, int]:
    """How many runs are done, and how many there are to be."""
    return len(results["runs"]), plan_of(results).wanted(results)


def config_of(results: Results) -> Config:
    return Config.from_dict(results["config"], Path(RESULTS))


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


def last_notes(results: Results, config: Config) -> list[str]:
    """Where it ran, and what digits are good for."""
    notes = environment.notes(results["environments"])
    if config.data == "digits":
        notes.append("On digits this shows the mechanism, not a benefit.")
    return notes


def shown(estimate: Estimate | None, digits: int, sign: bool = False) -> str:
    return "" if estimate is None else estimate.text(digits, sign)


def plain(value: float) -> str:
    """Three digits, and from 100 on whole numbers: never 1e+03."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.3g}"
