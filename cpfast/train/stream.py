"""The order in which samples are trained on, cut into batches of one size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SampleStream:
    """What is planned for an epoch, behind what the last one left over: fewer samples than a batch.

    An epoch may take several batches as one; all of its batches are then of that size. It may take
    several for a step; all of its steps are then of so many.

    Every batch therefore has the same size, and no planned sample is lost before the training's
    end. A sample keeps the draw and the weight of the epoch that planned it. The buffers stay
    where they are, and `next` advances a cursor on the device: a captured CUDA graph that calls it
    takes batch after batch.

    Args:
        capacity: the most samples that an epoch plans.
        batch_size: B.
        most: the most batches that are taken for a step.
        device: of the buffers.
        rank, size: of the processes that share each batch, all with the same plan: this one takes
            every ``size``-th sample of it. The batch size is divisible by it.
    """

    def __init__(
        self,
        capacity: int,
        batch_size: int,
        device: torch.device,
        most: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.batch_size, self.largest = batch_size, batch_size * most
        length = capacity + self.largest
        self._index = torch.zeros(length, dtype=torch.int64, device=device)
        self._draw = torch.zeros(length, dtype=torch.int64, device=device)
        self._weight = torch.ones(length, device=device)
        self._cursor = torch.zeros((), dtype=torch.int64, device=device)
        self._ranks = size
        self._positions = torch.arange(rank, self.largest, size, device=device)
        self._begin = self._end = 0  # of what is left over

    def extend(self, index: Tensor, draw: Tensor, weight: Tensor, times: int = 1) -> int:
        """Append an epoch; returns how many steps can be made now, all of which must be.

        Args:
            index: [n] int64, n at most the capacity.
            draw: [n] int64, which passes over the data these are.
            weight: [n] float32, of the losses.
            times: how many batches each step takes, one after another or as one.
        """
        left = self._end - self._begin
        for buffer, new in self._pairs(index, draw, weight):
            buffer[:left] = buffer[self._begin : self._end].clone()
            buffer[left : left + len(new)] = new
        self._cursor.zero_()
        self._end = left + len(index)
        size = times * self.batch_size
        batches = self._end // size
        self._begin = batches * size
        return batches

    def next(self, times: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch's indices, draws and weights: [times x B / size] each, of ``times``
        batches as one."""
        size = times * self.batch_size
        positions = self._cursor + self._positions[: size // self._ranks]
        self._cursor += size
        return self._index[positions], self._draw[positions], self._weight[positions]

    def weight_sum(self) -> Tensor:
        """Sum of the weights of this epoch's batches: [] float64."""
        return self._weight[: self._begin].sum(dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """What is left over."""
        left = slice(self._begin, self._end)
        return {
            "index": self._index[left].clone(),
            "draw": self._draw[left].clone(),
            "weight": self._weight[left].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, between two epochs.

        Raises:
            ValueError: it is that of another batch size.
        """
        left = len(state["index"])
        if left >= self.largest:
            raise ValueError(f"{left} samples left over, a batch has at most {self.largest}")
        for buffer, kept in self._pairs(state["index"], state["draw"], state["weight"]):
            buffer[:left] = kept
        self._begin, self._end = 0, left

    def _pairs(self, *values: Tensor) -> Any:
        return zip((self._index, self._draw, self._weight), values, strict=True)
