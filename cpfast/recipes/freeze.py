"""No gradient for layers that have stopped turning."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Freeze"]


@actions.register("freeze", source="arXiv 2201.06227, with rotation for activations; this project")
@dataclass(frozen=True)
class Freeze:
    """Freezes the first layers, from the input side, whose rotation has stopped.

    A layer has stopped when its rotation changed by at most ``below`` of itself within the last
    ``epochs`` epochs. All layers before the first that has not stopped get no gradient, so that the
    backward pass ends there; the last layer never is. Frozen layers do not turn, and stay frozen.
    The forward pass is as before, and BatchNorm's running statistics follow it.

    A rotation near 1 changes no more, though weights may still diffuse: nothing is concluded
    from it about learning.

    Raises:
        TypeError: for a field of another type.
        ValueError: for numbers out of range.
    """

    below: float = 0.02
    epochs: int = 3
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.below < 1:
            raise ValueError(f"below: expected a share in [0, 1), got {self.below}")
        if self.epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {self.epochs}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        measured = moment.rotations[: moment.epoch]
        if len(measured) <= self.epochs:
            return settings
        frozen = 0
        for before, now in zip(measured[-1 - self.epochs], measured[-1], strict=True):
            if not abs(now - before) <= self.below * now:
                break
            frozen += 1
        frozen = min(frozen, len(measured[-1]) - 1)
        return settings._replace(frozen=max(settings.frozen, frozen))
