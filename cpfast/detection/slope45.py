"""The paper's rule: the mean layer rotation rises at less than 45 degrees."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["Slope45"]


@criteria.register("slope45", source="arXiv 2506.15954")
class Slope45(Criterion):
    """The slope of the mean layer rotation over epochs, both scaled to [0, 1], falls below 1.

    Epochs 1..T are scaled to [0, 1]; the period has ended when the least-squares slope of the last
    ``window`` values against them makes an angle below 45 degrees, that is, when the mean rotation
    grows by less than 1 / (T - 1) an epoch. The paper's window is 5. The rule depends on T: one
    curve fires at epoch 5 of 50 and at epoch 9 of 200.

    Raises:
        ValueError: for a window below 2.
    """

    of_rotation = True

    def __init__(self, window: int = 5) -> None:
        if window < 2:
            raise ValueError(f"window: a slope needs at least 2 values, got {window}")
        self.window = self.earliest = window

    def measure(self, probe: Probe) -> Tensor:
        return probe.rotation().double().mean(0, keepdim=True)

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        if len(history) < self.window:
            return None
        # With T = 1 there is nothing to scale by, and no second epoch to need it.
        scale = max(moment.total_epochs - 1, 1)
        return _least_squares_slope(
            [((epoch - 1) / scale, values[0]) for epoch, values in history[-self.window :]]
        )

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        slope = self.statistic(history, moment)
        if slope is None or math.atan(slope) >= math.pi / 4:
            return None
        return (
            f"slope45: slope {slope:.3f} < 1 over epochs {history[-self.window].epoch}-"
            f"{history[-1].epoch} of {moment.total_epochs}"
        )


def _least_squares_slope(points: list[tuple[float, float]]) -> float:
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return covariance / sum((x - mean_x) ** 2 for x, _ in points)
