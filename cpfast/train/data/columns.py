"""From columns of any types to a table of numbers.

Numbers stay as they are, and where one is missing it is the training rows' mean. Of texts and
categories each value becomes a column of zeros and ones. What all rows have different numbers of
and is called an id or an index is left out: it would tell where in the file a row stands.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import numpy as np

from cpfast.train.data.arrays import labelled, split
from cpfast.train.data.sets import FloatData
from cpfast.train.data.split import HELD_OUT_NOTE
from cpfast.train.errors import UserError, require

LABELS = ("label", "class", "target", "y")
IDS = ("", "id", "index", "unnamed: 0")
MOST_CATEGORIES = 64  # of a column
MOST_CLASSES = 1000
SHOWN = 5  # columns
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}")


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
    values, test_values = _features(source, train, test, label, notes)
    return labelled(
        source, values, labels, classes,
        test=(test_values, test_labels), limit=limit, name=name, notes=notes,
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


# --- features ---------------------------------------------------------------------------------


def _features(
    source: str, train: Any, test: Any, label: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """[N, F] of each."""
    types = require("pandas", "reading tables").api.types
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    missing: dict[str, int] = {}
    left_out: list[str] = []
    for column in train:
        if column == label:
            continue
        if column not in test:
            raise UserError(f"{source}: the test rows have no column {str(column)!r}")
        one, other = train[column], test[column]
        is_id = str(column).lower() in IDS and one.is_unique and types.is_integer_dtype(one)
        if is_id or one.isna().all():
            left_out.append(repr(str(column)))
            continue
        count = int(one.isna().sum() + other.isna().sum())
        if count:
            missing[str(column)] = count
        if types.is_bool_dtype(one) or types.is_numeric_dtype(one):
            parts.append(_numbers(source, str(column), one, other))
        elif types.is_datetime64_any_dtype(one):
            raise _not_a_feature(source, column, "dates")
        else:
            parts.append(_one_hot(source, str(column), one, other))
    if not parts:
        raise UserError(f"{source}: no column beside {label!r} to learn from")
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}, ids or empty")
    if missing:
        per = ", ".join(f"{name} {count:,}" for name, count in list(missing.items())[:SHOWN])
        more = ", ..." * (len(missing) > SHOWN)
        notes.append(
            f"{sum(missing.values()):,} missing values ({per}{more}): the training mean of numbers"
            ", no category of categories"
        )
    return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])


def _numbers(source: str, column: str, train: Any, test: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        one, other = (part.to_numpy(dtype=np.float64, na_value=np.nan) for part in (train, test))
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: column {column!r}: {error}") from error
    mean = np.nanmean(one)
    one, other = (np.where(np.isnan(part), mean, part)[:, None] for part in (one, other))
    return one, other


def _one_hot(source: str, column: str, train: Any, test: Any) -> tuple[np.ndarray, np.ndarray]:
    values = sorted({str(value) for value in train.dropna().unique()})
    if all(_DATE.match(value) for value in values):
        raise _not_a_feature(source, column, f"dates such as {values[0]!r}")
    if len(values) > MOST_CATEGORIES:
        raise _not_a_feature(
            source,
            column,
            f"{len(values):,} different texts, of which {MOST_CATEGORIES} at most are categories",
        )
    known = np.array(values)
    return tuple(
        (part.astype(str).to_numpy(dtype=object)[:, None] == known)
        .astype(np.float64) * part.notna().to_numpy()[:, None]
        for part in (train, test)
    )  # fmt: skip


def _not_a_feature(source: str, column: Any, what: str) -> UserError:
    return UserError(
        f"{source}: column {str(column)!r} holds {what}; leave it out of the file, or make numbers "
        "of it"
    )


def _shown(columns: list[str]) -> str:
    listed = [repr(name) for name in columns[: 2 * SHOWN]]
    return ", ".join(listed + ["..."] * (len(columns) > 2 * SHOWN))
