"""The order of an epoch, which is computed a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpfast import ops
from cpfast.arguments import whole

__all__ = ["LazyPlan", "Shuffled"]


class Shuffled(NamedTuple):
    """One pass over the data: the first ``length`` of the first ``count`` indices, shuffled."""

    indices: Tensor
    count: Tensor  # type: ignore[assignment]  # it hides tuple.count
    length: int
    seed: int
    epoch: int
    stream: int

    def slice(self, start: int, size: int) -> Tensor:
        return ops.shuffled_slice(
            self.indices, self.count, start, size,
            seed=self.seed, epoch=self.epoch, stream=self.stream,
        )  # fmt: skip


class LazyPlan:
    """The indices of an epoch in random order, computed a batch at a time.

    :meth:`DataPruner.prepare` makes it, and it stays what it is while scores change and other
    epochs are planned. ``len(plan)`` is the number of samples in the epoch.

    Attributes:
        rescored: [m] int64, the samples that are to be scored again after the epoch's steps.
    """

    def __init__(self, passes: Sequence[Shuffled], rescored: Tensor) -> None:
        self._passes = tuple(passes)
        self.rescored = rescored

    def __len__(self) -> int:
        return sum(one.length for one in self._passes)

    def batch(self, start: int, size: int) -> Tensor:
        """``plan(epoch)[start : start + size]``: [size] int64 on the device, fewer at the end.

        Raises:
            TypeError: for one that is no integer.
            ValueError: for a negative number.
        """
        start, size = whole("start", start, least=0), whole("size", size, least=0)
        slices, first = [], 0
        for one in self._passes:
            begin, end = max(start, first), min(start + size, first + one.length)
            if begin < end:
                slices.append(one.slice(begin - first, end - begin))
            first += one.length
        if not slices:  # past the end
            return self._passes[0].slice(0, 0)
        return slices[0] if len(slices) == 1 else torch.cat(slices)
