"""From a table with columns of any types, of which one holds classes, to a data set of numbers."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from cpfast.train.data import features
from cpfast.train.data.arrays import labelled, split
from cpfast.train.data.sets import FloatData
from cpfast.train.data.split import HELD_OUT_NOTE
from cpfast.train.errors import UserError

LABELS = ("label", "class", "target", "y")
MOST_CLASSES = 1000
SHOWN = 5  # columns


def encode(
    source: str,
    train: Any,
    test: Any | None,
    *,
    label: str | None,
    last: bool,
    limit: int | None,
    name: str,
) -> FloatData:
    """
    Args:
        source: for messages.
        train, test: DataFrames. Without test, or where that has no labels, a fifth is held out.
        label: the column that holds the classes; None: one of `LABELS`, or the last where `last`.

    Raises:
        UserError: naming the column that is neither numbers nor categories.
    """
    notes: list[str] = []
    label = _label(source, train, label, last, notes)
    if test is not None and label not in test:
        notes.append(f"the test rows have no {label!r} and are not used")
        test = None
    train = _with_labels(train, label, notes)
    classes = _classes(source, train[label])
    labels = _numbered(source, train[label], classes)
    if test is None:
        held = split(source, labels, classes)
        test_labels, test = labels[held], train[held]
        labels, train = labels[~held], train[~held]
        notes.insert(0, HELD_OUT_NOTE)
    else:
        test = _with_labels(test, label, notes)
        test_labels = _numbered(source, test[label], classes)
    columns = features.found(source, train, test, label, notes)
    values, test_values = (features.encoded(source, part, columns) for part in (train, test))
    return labelled(
        source, values, labels, classes,
        test=(test_values, test_labels), limit=limit, name=name, notes=notes, columns=columns,
    )  # fmt: skip


# --- labels -----------------------------------------------------------------------------------


def _label(source: str, frame: Any, label: str | None, last: bool, notes: list[str]) -> str:
    columns = [str(column) for column in frame]
    if label is not None:
        if label not in columns:
            near = difflib.get_close_matches(label, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else _shown(columns)
            raise UserError(f"--label {label}: {source} has no such column; {hint}")
        return label
    found = [c for known in LABELS for c in columns if c.lower() == known]
    if found:
        return found[0]
    if not last:
        raise UserError(f"{source}: which column holds the classes? --label COLUMN, of "
                        f"{_shown(columns)}")  # fmt: skip
    notes.append(f"classes are the last column, {columns[-1]!r} (--label chooses)")
    return columns[-1]


def _with_labels(frame: Any, label: str, notes: list[str]) -> Any:
    missing = int(frame[label].isna().sum())
    if missing:
        notes.append(f"{missing:,} row{'s' * (missing > 1)} without {label!r} left out")
    return frame[frame[label].notna()]


def _classes(source: str, column: Any) -> list[str]:
    """Names, by number where all are numbers."""
    values = column.unique().tolist()
    if not values:
        raise UserError(f"{source}: no rows")
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise UserError(
            f"--label {column.name}: it holds numbers such as {values[0]}, not classes; what is "
            "trained is a classifier"
        )
    if len(values) > MOST_CLASSES:
        raise UserError(
            f"--label {column.name}: {len(values):,} different values, {MOST_CLASSES:,} classes at "
            "most"
        )
    try:
        return list(dict.fromkeys(map(_name, sorted(values))))
    except TypeError:  # of several types
        return sorted({_name(value) for value in values})


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, (bool, float)) else str(value)


def _numbered(source: str, column: Any, classes: list[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(classes)}
    names = [_name(value) for value in column.tolist()]
    if unknown := next((name for name in names if name not in places), None):
        raise UserError(f"{source}: the test rows have class {unknown!r}, no training row has it")
    return np.array([places[name] for name in names], dtype=np.int64)


def _shown(columns: list[str]) -> str:
    listed = [repr(name) for name in columns[: 2 * SHOWN]]
    return ", ".join(listed + ["..."] * (len(columns) > 2 * SHOWN))
