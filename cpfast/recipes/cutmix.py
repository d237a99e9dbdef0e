"""Mixtures of two samples, of a rectangle of one in the other."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Cutmix"]


@actions.register("cutmix", source="arXiv 1905.04899")
@dataclass(frozen=True)
class Cutmix:
    """Pastes a rectangle of another image, of an area drawn from Beta(alpha, alpha), once a batch.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a negative alpha.
    """

    alpha: float = 1.0
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha: expected a number from 0 on, got {self.alpha}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        change = amount * (self.alpha - settings.cutmix)
        return settings._replace(cutmix=settings.cutmix + change)
