"""Weights that no longer get anywhere: their path against that of a random walk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["PathEfficiency"]


@criteria.register("path_efficiency", source="this project's hypothesis, to be tested")
class PathEfficiency(Criterion):
    """The weights move as a random walk would, and the samples keep their ranks by loss.

    Within an epoch, a layer's squared displacement over the sum of its squared steps is compared
    with what gradients that are noise alone would give, momentum included. The period has ended
    when the mean logarithm of that ratio over the layers is no more than ``band`` standard errors
    above 0, and the losses of one epoch and the next correlate by rank with at least ``stable``.
    The length of the training plays no part. A ratio below its null, as weight decay in
    equilibrium makes it, counts as no progress too.

    Raises:
        ValueError: for numbers out of range.
    """

    needs = ("paths",)
    earliest = 2

    def __init__(self, band: float = 2.0, stable: float = 0.6) -> None:
        if not band >= 0:
            raise ValueError(f"band: expected 0 or more standard errors, got {band}")
        if not -1 <= stable <= 1:
            raise ValueError(f"stable: expected a correlation in [-1, 1], got {stable}")
        self.band = band
        self.stable = stable

    def measure(self, probe: Probe) -> Tensor:
        """Mean and standard error of the logarithm over the layers, and the correlation."""
        paths = probe.paths()
        moved = paths.steps > 0  # a frozen layer says nothing
        ratio = torch.where(moved, paths.displacement / paths.steps, 1.0) / probe.path_null()
        logs = torch.where(moved, ratio.clamp_min(1e-300).log(), 0.0)
        layers = moved.sum()
        mean = logs.sum() / layers
        squares = torch.where(moved, (logs - mean).square(), 0.0).sum()
        error = (squares / (layers * (layers - 1).clamp_min(1))).sqrt()
        return torch.stack([mean, error, probe.rank_stability()])

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        mean = history[-1].values[0]
        return math.exp(mean) if mean < 700 else None

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        mean, error, rank = history[-1].values
        # A NaN, of an epoch without steps or of the first correlation, decides nothing.
        if not (mean <= self.band * error and rank >= self.stable):
            return None
        return (
            f"path_efficiency: {math.exp(mean):.2f} of a random walk's displacement within "
            f"{self.band:g} standard errors, losses correlate by rank with {rank:.2f}"
        )
