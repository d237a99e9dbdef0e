"""Which samples are taken where not all are: the same at every call."""

from __future__ import annotations

import numpy as np
import torch

from cpfast.train.data.sets import Data, TextData
from cpfast.train.errors import UserError


def stratified(
    labels: np.ndarray, count: int, seed: int = 0, *, option: str = "--limit", of: str = "training"
) -> np.ndarray:
    """Positions of `count` samples with each class's share kept: sorted int64 [count].

    Shares are rounded by largest remainder, at least one sample a class; which samples are
    taken depends on `seed` alone.

    Raises:
        UserError: more samples asked for than there are, or fewer than there are classes.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if not len(classes) <= count <= len(labels):
        raise UserError(
            f"{option} must be in {len(classes)} (classes) .. {len(labels)} ({of} samples), "
            f"got {count}"
        )
    share = sizes * (count / len(labels))
    take = np.maximum(np.floor(share), 1).astype(np.int64)
    while take.sum() < count:
        take[np.argmax(np.where(take < sizes, share - take, -np.inf))] += 1
    while take.sum() > count:
        take[np.argmax(np.where(take > 1, take - share, -np.inf))] -= 1
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


HELD_OUT = 5  # one in so many
HELD_OUT_NOTE = "a fifth of each class, drawn by a fixed seed, is held out for testing"


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which samples test where there is no split: bool [N], a fifth of each class, one at least.

    Each class has two samples or more.
    """
    held = np.zeros(len(labels), dtype=bool)
    held[stratified(labels, max(len(labels) // HELD_OUT, len(np.unique(labels))))] = True
    return held


def some(
    count: int, limit: int | None, *, option: str = "--limit", of: str = "training"
) -> np.ndarray | slice:
    """What selects `limit` of `count` sequences, which have no classes.

    Raises:
        UserError: there are fewer.
    """
    if limit is None:
        return slice(None)
    if not 1 <= limit <= count:
        raise UserError(f"{option} must be in 1 .. {count} ({of} sequences), got {limit}")
    generator = np.random.Generator(np.random.PCG64(0))
    return np.sort(generator.permutation(count)[:limit])


def limited(labels: np.ndarray, limit: int | None) -> np.ndarray | slice:
    """What selects `limit` samples from an array: positions; without a limit a slice, which
    copies nothing.
    """
    return slice(None) if limit is None else stratified(labels, limit)


def limited_test(data: Data, limit: int) -> Data:
    """With so many of its test samples, of those with labels each class's share.

    Raises:
        UserError: it has fewer, or fewer are asked for than there are classes.
    """
    option, of = "--limit-test", "test"
    chosen = (
        some(data.test_size, limit, option=option, of=of)
        if isinstance(data, TextData)
        else stratified(data.test_labels.cpu().numpy(), limit, option=option, of=of)
    )
    return data.with_test(torch.as_tensor(chosen))
