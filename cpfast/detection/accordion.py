"""Gradients whose norm no longer changes much."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["Accordion"]


@criteria.register("accordion", source="arXiv 2010.16248; uw-mad-dash/Accordion:auto_scale.py")
class Accordion(Criterion):
    """No layer's gradient norm changes by half or more of itself in ten epochs.

    The norm is that of the sum of an epoch's gradients; after epochs 1, 11, 21, ... it is compared
    with that of ten epochs before. A layer is critical while ``abs(before - now) / before`` is
    ``threshold`` or more, where ``before`` is 0, and in the first comparison, which has none. The
    source decides for each layer by itself, over and over; that the period has ended when no layer
    is critical is ours. A layer without a gradient in one of the epochs does not count.

    Args:
        threshold: the source's; it is fixed there.
        interval: epochs between two comparisons: 10, in two of the source's settings 5.

    Raises:
        ValueError: for numbers out of range.
    """

    needs = ("gradients",)

    def __init__(self, threshold: float = 0.5, interval: int = 10) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold: expected a share above 0, got {threshold}")
        if interval < 1:
            raise ValueError(f"interval: expected at least 1 epoch, got {interval}")
        self.threshold = threshold
        self.every = interval
        self.earliest = 1 + interval

    def measure(self, probe: Probe) -> Tensor:
        return probe.gradients().norms

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        """The largest change; None where it is infinite, or there is nothing to compare."""
        change = self._change(history)
        return change if change is not None and math.isfinite(change) else None

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        change = self._change(history)
        if change is None or change >= self.threshold:
            return None
        return (
            f"accordion: gradient norms changed by at most {change:.3f} < {self.threshold:g} of "
            f"themselves in {self.every} epochs"
        )

    def _change(self, history: Sequence[Measured]) -> float | None:
        now = history[-1]
        earlier = [m.values for m in history if m.epoch == now.epoch - self.every]
        if not earlier:
            return None
        pairs = zip(earlier[0], now.values, strict=True)
        changes = [abs(a - b) / a if a else math.inf for a, b in pairs if not math.isnan(a + b)]
        return max(changes, default=None)
