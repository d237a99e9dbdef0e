"""What became of each case of a benchmark file: a line of JSON each, appended as it ends.

A line is {"collected": [case...]}, or {"case", "state", ...} with the state "begun", "done",
"failed", "skipped" or "cut": the last one of a case counts. Those of a case that was measured have
its "records", "notes" and "bandwidth". A process that is killed leaves all lines but its last.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def append(path: pathlib.Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        # A line that was cut short ends where the next begins.
        file.write(f"\n{json.dumps(row)}")


def _lines(path: pathlib.Path) -> Iterable[Row]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def read(path: pathlib.Path) -> dict[str, Row]:
    """The last row of each case, in the order in which the cases were begun."""
    return {row["case"]: row for row in _lines(path) if "case" in row}


def left(path: pathlib.Path) -> list[str]:
    """Cases that were collected and have no row, or were cut."""
    collected = [case for row in _lines(path) for case in row.get("collected", [])]
    found = read(path)
    return [c for c in dict.fromkeys(collected) if c not in found or found[c]["state"] == "cut"]


def settle(path: pathlib.Path) -> None:
    """Forgets all but what was measured: the rest is tried again."""
    done = [row for row in read(path).values() if row["state"] == "done"]
    path.unlink(missing_ok=True)
    for row in done:
        append(path, row)


def merge(rows: Iterable[Row]) -> dict[str, Any]:
    """As the benchmarks' JSON has them: {"benchmarks", "notes", "bandwidth"}."""
    merged: dict[str, Any] = {"bandwidth": {}, "notes": {}, "benchmarks": []}
    for row in rows:
        merged["benchmarks"] += row.get("records", [])
        merged["notes"] |= row.get("notes", {})
        merged["bandwidth"] |= row.get("bandwidth", {})
        if row["state"] in ("begun", "failed"):
            why = row.get("why", "its process ended in it")
            merged["notes"][row["case"]] = f"failed: {why}"
    return merged
