"""How much data a whole training sees."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Volume"]


@actions.register("volume", source="this project")
@dataclass(frozen=True)
class Volume:
    """Prunes so that the window's epochs see ``budget`` of their samples in all.

    More of them may be early, or late.

    The share that an epoch keeps goes in a straight line from ``first`` to 2 budget - first, whose
    mean over the window is the budget. Policies that keep floor(keep x N) meet it to a sample an
    epoch; an epoch that a policy leaves full, such as the first of most, comes on top.

    Raises:
        TypeError: for a field of another type.
        ValueError: where the line would leave (0, 1], or the window has a ramp.
    """

    budget: float = 0.7
    first: float | None = None
    """None: the budget itself, in every epoch."""
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget: expected a share in (0, 1], got {self.budget}")
        if not (0 < self._first <= 1 and 0 < 2 * self.budget - self._first <= 1):
            raise ValueError(
                f"first: expected a share whose line to 2 budget - first = "
                f"{2 * self.budget - self._first:g} stays in (0, 1], got {self.first}"
            )
        if self.window.ramp or self.window.phase == "during":
            raise ValueError(
                "window: a volume has a slope of its own, and needs to know its end; got "
                f"{self.window}"
            )

    @property
    def _first(self) -> float:
        return self.budget if self.first is None else self.first

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        span = self.window.span(moment)
        done = (moment.epoch - span.start) / max(1, len(span) - 1)
        if len(span) == 1:
            done = 0.5
        keep = self._first + 2 * done * (self.budget - self._first)
        return settings._replace(prune=True, keep=keep)
