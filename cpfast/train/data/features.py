"""Columns of any types as numbers: what each was in the training rows, and any rows by that.

Numbers stay as they are, and where one is missing it is the training rows' mean. Of texts and
categories each value becomes a column of zeros and ones. What all rows have different numbers of
and is called an id or an index is left out: it would tell where in the file a row stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cpfast.train.errors import UserError, require

__all__ = ["Column", "encoded", "found"]

IDS = ("", "id", "index", "unnamed: 0")
MOST_CATEGORIES = 64  # of a column
SHOWN = 5  # columns
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}")


class Column(NamedTuple):
    """A column that is learned from.

    Attributes:
        mean: of the training rows, where it holds numbers; else None.
        values: the categories, where it holds those; each becomes a feature.
    """

    name: str
    mean: float | None = None
    values: tuple[str, ...] = ()


def found(source: str, train: Any, test: Any, label: str, notes: list[str]) -> tuple[Column, ...]:
    """Those of the training rows but `label`; what is left out or missing is added to the notes.

    Raises:
        UserError: naming the column that is neither numbers nor categories, or that the test rows
            lack.
    """
    types = require("pandas", "reading tables").api.types
    columns: list[Column] = []
    missing: dict[str, int] = {}
    left_out: list[str] = []
    for column in train:
        if column == label:
            continue
        name = str(column)
        if column not in test:
            raise UserError(f"{source}: the test rows have no column {name!r}")
        one, other = train[column], test[column]
        is_id = name.lower() in IDS and one.is_unique and types.is_integer_dtype(one)
        if is_id or one.isna().all():
            left_out.append(repr(name))
            continue
        count = int(one.isna().sum() + other.isna().sum())
        if count:
            missing[name] = count
        if types.is_bool_dtype(one) or types.is_numeric_dtype(one):
            columns.append(Column(name, float(np.nanmean(_numbers(source, name, one)))))
        elif types.is_datetime64_any_dtype(one):
            raise _not_a_feature(source, name, "dates")
        else:
            columns.append(Column(name, values=_categories(source, name, one)))
    if not columns:
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
    return tuple(columns)


def encoded(source: str, frame: Any, columns: Sequence[Column]) -> np.ndarray:
    """float64 [N, F], whatever else the frame has.

    Raises:
        UserError: naming the column that is missing, or is no numbers any more.
    """
    own = {str(column): column for column in frame}
    parts = []
    for column in columns:
        if column.name not in own:
            raise UserError(f"{source}: no column {column.name!r}, which the model was trained on")
        values = frame[own[column.name]]
        if column.mean is None:
            parts.append(_one_hot(values, column.values))
        else:
            numbers = _numbers(source, column.name, values)
            parts.append(np.where(np.isnan(numbers), column.mean, numbers)[:, None])
    return np.hstack(parts)


def _numbers(source: str, name: str, column: Any) -> np.ndarray:
    """float64 [N], not a number where one is missing."""
    try:
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: column {name!r}: {error}") from error


def _categories(source: str, name: str, column: Any) -> tuple[str, ...]:
    values = sorted({str(value) for value in column.dropna().unique()})
    if all(_DATE.match(value) for value in values):
        raise _not_a_feature(source, name, f"dates such as {values[0]!r}")
    if len(values) > MOST_CATEGORIES:
        raise _not_a_feature(
            source,
            name,
            f"{len(values):,} different texts, of which {MOST_CATEGORIES} at most are categories",
        )
    return tuple(values)


def _one_hot(column: Any, values: Sequence[str]) -> np.ndarray:
    is_one = column.astype(str).to_numpy(dtype=object)[:, None] == np.array(values)
    return is_one.astype(np.float64) * column.notna().to_numpy()[:, None]


def _not_a_feature(source: str, name: str, what: str) -> UserError:
    return UserError(
        f"{source}: column {name!r} holds {what}; leave it out of the file, or make numbers of it"
    )
