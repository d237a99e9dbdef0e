"""How much the weights are decayed."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions, toward

__all__ = ["WeightDecay"]


@actions.register("weight_decay", source="arXiv 1905.13277")
@dataclass(frozen=True)
class WeightDecay:
    """Multiplies the weight decay: by 0 it is off.

    Golatkar et al. find that what it does early matters, and that it can be off after the critical
    period.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a negative factor.
    """

    factor: float = 0.0
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.factor < float("inf"):
            raise ValueError(f"factor: expected a number from 0 on, got {self.factor}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(weight_decay=toward(settings.weight_decay, self.factor, amount))
