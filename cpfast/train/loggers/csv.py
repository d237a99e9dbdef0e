"""One file of comma separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpfast.train.files import write_atomically
from cpfast.train.loggers import Logger, Values, loggers

__all__ = ["CsvLogger"]

FILE = "metrics.csv"


@loggers.register("csv", source="this project")
class CsvLogger(Logger):
    """metrics.csv in the run's folder: a row an epoch, a column a tag, empty where there is none.

    What was written of the completed epochs stays, such as their energy, and what is missing is
    filled in; a damaged file is written anew.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], past: Sequence[Values]) -> None:
        self._path = folder / FILE
        self._columns: list[str] = []
        if not past:
            self._path.unlink(missing_ok=True)
            return
        held = _read(self._path)
        rows = [held.get(epoch, {}) for epoch in range(1, len(past) + 1)]
        text = "".join(
            self._row(epoch, {**values, **row})
            for epoch, (values, row) in enumerate(zip(past, rows, strict=True), 1)
        )
        write_atomically(self._path, lambda file: file.write(text.encode()))

    def log(self, epoch: int, values: Values) -> None:
        text = self._row(epoch, values)
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(text)

    def _row(self, epoch: int, values: Mapping[str, Any]) -> str:
        """With the header, where it is the first."""
        text = io.StringIO(newline="")
        if not self._columns:
            self._columns = ["epoch", *values]
            csv.writer(text, lineterminator="\n").writerow(self._columns)
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n")
        writer.writerow({"epoch": epoch, **values})
        return text.getvalue()


def _read(path: Path) -> dict[int, dict[str, float]]:
    """What can be read of a file, by epoch, without what is empty."""
    held = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                cells = {tag: float(text) for tag, text in row.items() if tag and text}
                held[int(cells.pop("epoch"))] = cells
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, csv.Error):
        pass
    return held
