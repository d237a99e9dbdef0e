"""Which samples are taken where not all are: the same at every call."""

from __future__ import annotations

import numpy as np

from cpfast.train.errors import UserError


def stratified(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Positions of `count` samples with each class's share kept: sorted int64 [count].

    Shares are rounded by largest remainder, at least one sample a class; which samples are
    taken depends on `seed` alone.

    Raises:
        UserError: more samples asked for than there are, or fewer than there are classes.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if not len(classes) <= count <= len(labels):
        raise UserError(
            f"--limit must be in {len(classes)} (classes) .. {len(labels)} (training images), "
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


def limited(labels: np.ndarray, limit: int | None) -> np.ndarray | slice:
    """What selects `limit` samples from an array: positions; without a limit a slice, which
    copies nothing.
    """
    return slice(None) if limit is None else stratified(labels, limit)
