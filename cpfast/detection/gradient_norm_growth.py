"""The gradients' norm no longer grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["GradientNormGrowth"]


@criteria.register(
    "gradient_norm_growth", source="KDD 2023, CriticalFL; GYan58/KDD-2023-CriticalFL:Util.py"
)
class GradientNormGrowth(Criterion):
    """The learning rate times the squared gradient norm, in the mean of 10 epochs, stops growing.

    An epoch's value is the mean over its steps of ``lr |g|^2``, of all parameters. An epoch is
    critical while the mean of the last ``window`` values is more than ``growth`` above that of the
    ``window`` values before the last one, and the first ``warmup`` always are; values of before
    the first epoch are 0. The source measures it in federated training, in which a round stands
    for an epoch, and clips gradients.

    Args:
        window, growth, warmup: the source's.

    Raises:
        ValueError: for numbers out of range.
    """

    needs = ("gradients",)

    def __init__(self, window: int = 10, growth: float = 0.01, warmup: int = 5) -> None:
        if window < 1:
            raise ValueError(f"window: expected at least 1 epoch, got {window}")
        if not math.isfinite(growth):
            raise ValueError(f"growth: expected a finite share, got {growth}")
        if warmup < 0:
            raise ValueError(f"warmup: expected 0 or more epochs, got {warmup}")
        self.window = window
        self.growth = growth
        self.earliest = warmup + 1

    def measure(self, probe: Probe) -> Tensor:
        return probe.gradients().decrease.unsqueeze(0)

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        values = [0.0] * (self.window + 1) + [m.values[0] for m in history]
        before = math.fsum(values[-self.window - 1 : -1]) / self.window
        before = max(before, 1e-7)  # the source's
        return (math.fsum(values[-self.window :]) / self.window - before) / before

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        growth = self.statistic(history, moment)
        assert growth is not None
        if growth > self.growth:
            return None
        return (
            f"gradient_norm_growth: lr |g|^2 in the mean of {self.window} epochs grew by "
            f"{growth:.4f} <= {self.growth:g}"
        )
