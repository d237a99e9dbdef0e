"""How many samples a step takes."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Batch"]


@actions.register("batch", source="arXiv 1711.00489")
@dataclass(frozen=True)
class Batch:
    """Takes several batches as one, at the same learning rate, and so makes fewer updates.

    It stands in place of a learning rate that is cut by as much.

    On a ramp, the nearest whole number on the way from what was set before.

    Raises:
        TypeError: for a field of another type.
        ValueError: for less than one.
    """

    times: int = 2
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if self.times < 1:
            raise ValueError(f"times: expected at least 1, got {self.times}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        change = amount * (self.times - settings.batch)
        return settings._replace(batch=settings.batch + round(change))
