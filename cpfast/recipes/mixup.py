"""Mixtures of two samples, of their pixels."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Mixup"]


@actions.register("mixup", source="arXiv 1710.09412; 2504.01737")
@dataclass(frozen=True)
class Mixup:
    """Trains on mixtures, in shares drawn from Beta(alpha, alpha), once a batch; 0 is a pause.

    2504.01737 pauses it in the early period on little data, and raises alpha there on much.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a negative alpha.
    """

    alpha: float = 0.2
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha: expected a number from 0 on, got {self.alpha}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        change = amount * (self.alpha - settings.mixup)
        return settings._replace(mixup=settings.mixup + change)
