"""From arrays of numbers to a data set: what every reader of tables and time series ends with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cpfast.train.data.features import Column
from cpfast.train.data.sets import FloatData
from cpfast.train.data.split import HELD_OUT_NOTE, held_out, limited
from cpfast.train.errors import UserError


def labelled(
    source: str,
    values: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    limit: int | None = None,
    name: str,
    notes: Sequence[str] = (),
    columns: tuple[Column, ...] = (),
) -> FloatData:
    """
    Args:
        source: for messages.
        values: [N, F] or [N, C, T] numbers.
        labels: int64 [N], in 0 .. len(classes) - 1.
        test: values and labels to test on; None: a fifth is held out.
        columns: what the values were made of, of a table with names.

    Raises:
        UserError: a class has no or too few samples, or a number is not finite.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2:
        raise UserError(f"{source}: only one class, {classes[0]!r}; two at least are needed")
    if test is None:
        held = split(source, labels, classes)
        test = values[held], labels[held]
        values, labels = values[~held], labels[~held]
        notes = (HELD_OUT_NOTE, *notes)
    elif counts.min() == 0:
        raise UserError(f"{source}: no training sample of class {classes[int(counts.argmin())]!r}")
    chosen = limited(labels, limit)
    return FloatData(
        _tensor(source, values[chosen]),
        torch.from_numpy(labels[chosen]),
        _tensor(source, test[0]),
        torch.from_numpy(test[1]),
        tuple(classes),
        name,
        "; ".join(notes),
        columns,
    )


def split(source: str, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Which samples are held out for testing, bool [N], see `held_out`.

    Raises:
        UserError: a class has one sample.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        raise UserError(
            f"{source}: only one sample of class {classes[int(counts.argmin())]!r}; two at least "
            "are needed, one of them for testing"
        )
    return held_out(labels)


def _tensor(source: str, values: np.ndarray) -> torch.Tensor:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, dtype=np.float32)
    if 0 in narrow.shape:
        raise UserError(f"{source}: no numbers, {list(narrow.shape)}")
    if not np.isfinite(narrow).all():
        sample = int(np.argwhere(~np.isfinite(narrow))[0][0])
        raise UserError(f"{source}: sample {sample} holds a number that is not finite in float32")
    return torch.from_numpy(narrow)
