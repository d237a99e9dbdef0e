"""A schedule that passes more slowly at first, as it does while the data are repeated.

k passes over the data in an epoch are k epochs of training in which the schedule advances by one.
So a run of T epochs that makes k passes in each of the first n, and one in the others, is pass for
pass a run of k n + (T - n) epochs whose learning rate stays high for longer and falls faster: that
of `Warp(k, k n)`. Its passes are named as that run names them, by epoch and number, so that orders
and augmentations are the same too, and the two are equal to the bit: where batches divide the data
(else a pass has a step more or less than a k-th of its epoch), nothing is left out, and images are
not mixed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from cpfast import ops
from cpfast.train.errors import UserError

__all__ = ["Position", "Warp"]


class Position(NamedTuple):
    """Where an epoch lies in the run that repeats.

    Attributes:
        epoch: of that run, from 0.
        number: which of that epoch's passes it is, from 0.
        passes: how many it has.
    """

    epoch: int
    number: int
    passes: int


class Warp(NamedTuple):
    """The schedule passes ``passes`` times as slowly in the first ``epochs``; as it is, not at all.

    >>> [tuple(Warp(2, 4).position(epoch)) for epoch in range(6)]
    [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 0, 1), (3, 0, 1)]
    """

    passes: int = 1
    epochs: int = 0

    @classmethod
    def parse(cls, text: str | None, total: int) -> Warp:
        """``passes@epochs``.

        Args:
            total: epochs of the training.

        Raises:
            UserError: another form, or no whole number of the epochs of the run that repeats.
        """
        if text is None:
            return cls()
        found = re.fullmatch(r"([0-9]{1,9})@([0-9]{1,9})", text)
        if found is None:
            raise UserError(f"--warp must be PASSES@EPOCHS, such as 3@30; got {text!r}")
        passes, epochs = int(found[1]), int(found[2])
        if passes < 1:
            raise UserError(f"--warp {text}: PASSES must be at least 1")
        if epochs > total:
            raise UserError(f"--warp {text}: EPOCHS must be at most {total} (--epochs)")
        if epochs % passes:
            raise UserError(f"--warp {text}: EPOCHS must be a multiple of PASSES")
        return cls(passes, epochs)

    def position(self, epoch: int) -> Position:
        """That of an epoch, from 0."""
        if epoch < self.epochs:
            return Position(epoch // self.passes, epoch % self.passes, self.passes)
        return Position(epoch - self.epochs + self.epochs // self.passes, 0, 1)

    def fraction(self, total: int, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The share of the schedule that is done, in [0, 1].

        >>> [Warp(2, 4).fraction(6, epoch) for epoch in (0, 1, 2, 4, 5)]
        [0.0, 0.125, 0.25, 0.5, 0.75]

        Args:
            total: epochs of the training.
            step: of the epoch's, from 0.
        """
        at = self.position(epoch)
        return (at.epoch + (at.number * steps + step) / (at.passes * steps)) / (
            total - self.epochs + self.epochs // self.passes
        )

    def order(self, size: int, epoch: int, seed: int, device: torch.device) -> Tensor:
        """All samples, in the order that the run that repeats has them in that pass: [size]."""
        at = self.position(epoch)
        everyone = torch.arange(size, device=device)
        count = torch.tensor(size, device=device)
        return ops.shuffled_slice(
            everyone, count, 0, size, seed=seed, epoch=at.epoch, stream=at.number
        )
