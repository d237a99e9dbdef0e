"""How strongly images are augmented."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields, fraction
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions, toward

__all__ = ["Augment"]


@actions.register("augment", source="arXiv 1905.13277; this project")
@dataclass(frozen=True)
class Augment:
    """The share of the ranges of shift and rotation that is left; at 0 nothing is flipped either.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a number out of range.
    """

    factor: float = 0.0
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        fraction("factor", self.factor)

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(augment=toward(settings.augment, self.factor, amount))
