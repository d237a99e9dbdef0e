"""How many augmented passes over the data an epoch makes."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Repeats"]


@actions.register("repeats", source="arXiv 2506.15954")
@dataclass(frozen=True)
class Repeats:
    """Passes over the data in an epoch: the paper's k.

    On a ramp, the nearest whole number on the way from what was set before.

    Raises:
        TypeError: for a field of another type.
        ValueError: for less than one.
    """

    repeats: int = 3
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if self.repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {self.repeats}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        change = amount * (self.repeats - settings.repeats)
        return settings._replace(repeats=settings.repeats + round(change))
