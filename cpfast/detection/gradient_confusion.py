"""No two batches agree any more as those of earlier epochs did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["GradientConfusion"]


@criteria.register(
    "gradient_confusion", source="baunilhamarga/critical-periods:utils/custom_callbacks.py"
)
class GradientConfusion(Criterion):
    """The largest cosine between two batches' gradients is a low outlier among those of before.

    Measured after each epoch, in evaluation mode; judged after epochs 10, 20, 30, ...: the period
    has ended when the largest is below Q1 - 1.5 (Q3 - Q1), with the quartiles of the epochs before.
    (The source's code leaves the last of these out, and takes all batches of the data.)

    Args:
        batches: that are compared, the same in each epoch; 4 is our choice.
        fence: how many interquartile ranges below the first quartile.
        interval: epochs between two judgements.

    Raises:
        ValueError: for numbers out of range.
    """

    needs = ("batches",)

    def __init__(self, batches: int = 4, fence: float = 1.5, interval: int = 10) -> None:
        if batches < 2:
            raise ValueError(f"batches: expected at least 2, got {batches}")
        if not fence >= 0:
            raise ValueError(f"fence: expected 0 or more, got {fence}")
        if interval < 3:
            raise ValueError(f"interval: quartiles need 2 epochs before, got {interval}")
        self.batches = batches
        self.fence = fence
        self.every = self.earliest = interval

    def measure(self, probe: Probe) -> Tensor:
        """The largest cosine, the mean, the smallest."""
        cosines = probe.gradient_similarities(self.batches)
        return torch.stack([cosines.max(), cosines.mean(), cosines.min()])

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        return history[-1].values[0]

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        *before, largest = (m.values[0] for m in history)
        if len(before) < 2:
            return None
        first, _, third = statistics.quantiles(before, n=4, method="inclusive")
        bound = first - self.fence * (third - first)
        if not largest < bound:
            return None
        return (
            f"gradient_confusion: the largest cosine of {self.batches} batches, {largest:.3f}, is "
            f"below {bound:.3f}"
        )
