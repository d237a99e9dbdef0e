"""A batch's gradient tells little of what it was an epoch ago."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["GradientPredictiveness"]


@criteria.register(
    "gradient_predictiveness",
    source="baunilhamarga/critical-periods:metrics/GradientPredictiveness.py",
)
class GradientPredictiveness(Criterion):
    """The cosine of a batch's gradient with its own an epoch ago falls below a threshold.

    The mean over a few batches, the same in each epoch, in evaluation mode. The source measures it
    and gives no rule: that of a threshold is ours.

    Args:
        threshold: 0.1 is our choice.
        batches: 4 is our choice. Their gradients are kept from epoch to epoch, and in checkpoints.

    Raises:
        ValueError: for numbers out of range.
    """

    needs = ("batches",)
    earliest = 2

    def __init__(self, threshold: float = 0.1, batches: int = 4) -> None:
        if not -1 < threshold < 1:
            raise ValueError(f"threshold: expected a cosine in (-1, 1), got {threshold}")
        if batches < 1:
            raise ValueError(f"batches: expected at least 1, got {batches}")
        self.threshold = threshold
        self.batches = batches

    def measure(self, probe: Probe) -> Tensor:
        """The mean cosine, and the smallest; NaN after the first epoch."""
        cosines = probe.gradient_persistence(self.batches)
        return torch.stack([cosines.mean(), cosines.min()])

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        mean = history[-1].values[0]
        return mean if mean == mean else None

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        mean = history[-1].values[0]
        if not mean < self.threshold:  # nor a NaN
            return None
        return f"gradient_predictiveness: mean cosine {mean:.3f} < {self.threshold:g}"
