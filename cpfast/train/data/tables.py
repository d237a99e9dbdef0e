"""Tables in files: .csv, .tsv and .parquet, alone or as train and test in one folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cpfast.train.data import Layout, columns, layouts
from cpfast.train.data.sets import FloatData
from cpfast.train.errors import MissingLibrary, UserError, first_line, require

SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = ["?"]  # UCI's, beside pandas' own
SEEN = 65536  # characters, from which the separator is told


def is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _parts(path: Path) -> list[Path]:
    """Train, and test where there is one."""
    if path.is_file():
        return [path]
    for suffix in SUFFIXES:
        found = [path / f"{part}{suffix}" for part in ("train", "test")]
        if all(part.is_file() for part in found):
            return found
    return []


def load(path: Path, limit: int | None, progress: bool, *, label: str | None) -> FloatData:
    """A header line names the columns; see `columns.encode` for what becomes of them.

    Raises:
        UserError: naming the file, and the column, and what is wrong with it.
    """
    parts = _parts(path)
    frames = [read(part) for part in parts]
    test = frames[1] if len(frames) > 1 else None
    is_text = parts[0].suffix.lower() != ".parquet"
    return columns.encode(
        str(path), frames[0], test, label=label, last=is_text, limit=limit, name=path.stem
    )


def read(path: Path, *, least: int = 2) -> Any:
    """A DataFrame.

    Args:
        least: columns, of which one may hold classes.

    Raises:
        MissingLibrary: pandas is missing, or pyarrow where it is needed.
        UserError: naming the file, where it cannot be read.
    """
    try:
        pandas = require("pandas", f"{path}")
        if path.suffix.lower() == ".parquet":
            require("pyarrow", f"{path}")
    except MissingLibrary as error:
        raise MissingLibrary(
            f"{path}: pandas reads it, and pyarrow if it is parquet; pip install pandas "
            f"pyarrow ({error.__cause__})"
        ) from error
    try:
        if path.suffix.lower() == ".parquet":
            return pandas.read_parquet(path)
        frame = pandas.read_csv(
            path, sep=_separator(path), na_values=MISSING, skipinitialspace=True
        )
    # pandas, and what it reads with, have many for what they do not understand
    except Exception as error:
        raise UserError(f"{path}: not a readable table ({first_line(error)})") from error
    if frame.shape[1] < least:
        raise UserError(f"{path}: only one column, {str(frame.columns[0])!r}")
    if number := next((name for name in frame if _is_number(str(name))), None):
        raise UserError(
            f"{path}: the first line holds numbers ({number}), not the names of the columns"
        )
    return frame


def _separator(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.readline(SEEN)
    try:
        return csv.Sniffer().sniff(head, ",;\t|").delimiter
    except csv.Error:  # a single column
        return ","


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "infinity")


@layouts.register("table", source="pandas", line="a table, .csv, .tsv or .parquet")
def layout() -> Layout:
    return Layout(
        load,
        holds=lambda path: bool(_parts(path)),
        is_file=is_table,
        order=1,
        takes=("label",),
        reads=lambda path: "table",
    )
