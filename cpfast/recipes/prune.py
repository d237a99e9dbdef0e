"""Leaving samples out of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Prune"]


@actions.register("prune", source="arXiv 2303.04947")
@dataclass(frozen=True)
class Prune:
    """Lets the pruner's policy leave samples out.

    Args:
        keep: what the policy keeps, a share in (0, 1]; None: as the pruner was made, without a
            ramp.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a share out of range, or a ramp without one.
    """

    keep: float | None = None
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a share in (0, 1], got {self.keep}")
        if self.keep is None and self.window.ramp:
            raise ValueError("keep: expected a share, for a ramp begins at 1 and ends there")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        keep = None if self.keep is None else 1 - amount * (1 - self.keep)
        return settings._replace(prune=True, keep=keep)
