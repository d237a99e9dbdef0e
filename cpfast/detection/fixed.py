"""A given epoch: the control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["Fixed"]


@criteria.register("fixed", source="the control of this project's comparisons")
class Fixed(Criterion):
    """A given epoch, whatever is measured.

    Raises:
        ValueError: for an epoch below 1, or beyond the training.
    """

    is_given = True

    def __init__(self, at: int) -> None:
        if at < 1:
            raise ValueError(f"at: expected an epoch from 1 on, got {at}")
        self.at = self.earliest = at

    def check(self, total_epochs: int) -> None:
        if self.at > total_epochs:
            raise ValueError(f"at: expected at most total_epochs, {total_epochs}, got {self.at}")

    def measure(self, probe: Probe) -> Tensor:
        return torch.empty(0)

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        return f"fixed: epoch {self.at}" if moment.epoch >= self.at else None
