"""Means over seeds with intervals, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cpfast.train.errors import require


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval; None for one seed."""

    mean: float
    half: float | None

    @property
    def is_told_from_zero(self) -> bool:
        """Whether the interval leaves 0 out; of one seed there is none."""
        return self.half is not None and abs(self.mean) > self.half

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    def text(self, digits: int = 2, sign: bool = False, unit: str = "") -> str:
        mean = f"{self.mean:{'+' * sign},.{digits}f}"
        return (mean if self.half is None else f"{mean} ± {self.half:,.{digits}f}") + unit


def interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t distribution."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None)
    quantile = require("scipy.stats", "an interval").t.ppf(0.975, len(values) - 1)
    return Estimate(mean, float(quantile) * statistics.stdev(values) / math.sqrt(len(values)))


def estimate(values: Iterable[float]) -> Estimate | None:
    """As `interval`; None of no value."""
    values = list(values)
    return interval(values) if values else None


def percent(entry: Mapping[str, Any]) -> float:
    """A run's accuracy."""
    return 100 * entry["test_accuracy"]


def difference(values: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
    """By seed, over those that both have."""
    return {seed: value - others[seed] for seed, value in values.items() if seed in others}


def paired(
    entries: Mapping[int, Mapping[str, Any]],
    reference: Mapping[int, Mapping[str, Any]],
    difference: Callable[[Mapping[str, Any], Mapping[str, Any]], float],
) -> Estimate | None:
    """The mean of `difference` over the seeds that both have."""
    return estimate(
        difference(entry, reference[seed]) for seed, entry in entries.items() if seed in reference
    )
