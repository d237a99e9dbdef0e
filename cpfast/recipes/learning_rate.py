"""How large the learning rate is."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["LearningRate"]


@actions.register("learning_rate", source="arXiv 2506.15954, its steps of a tenth")
@dataclass(frozen=True)
class LearningRate:
    """Multiplies the schedule's learning rate, by default by a tenth.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a negative factor.
    """

    factor: float = 0.1
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.factor < float("inf"):
            raise ValueError(f"factor: expected a number from 0 on, got {self.factor}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(lr=settings.lr * (1 - amount + amount * self.factor))
