"""What a comparison came to, with what may be concluded from it: one file a kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpfast.train.compare.statistics import percent
from cpfast.train.compare.tables.arms import arms_document
from cpfast.train.compare.tables.document import Document, Table, progress
from cpfast.train.compare.tables.falsify import falsify_document
from cpfast.train.compare.tables.oracle import oracle_document

__all__ = ["Document", "Table", "document", "entry_line"]

KINDS = {"arms": arms_document, "falsify": falsify_document, "oracle": oracle_document}


def document(results: Mapping[str, Any]) -> Document:
    """Of a comparison of any kind."""
    made = KINDS[results["kind"]](results)
    done, wanted = progress(results)
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
        came = f"{percent(dict(entry)):6.2f} %"
    return (
        f"seed {entry['seed']}  {what}  {came}  {entry['forward_samples']:>11,} samples  "
        f"{entry['seconds']:7.1f} s"
    )
