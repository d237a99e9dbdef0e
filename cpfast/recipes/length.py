"""How long sequences are."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions, toward

__all__ = ["Length"]


@actions.register("length", source="arXiv 2108.06084; mosaicml/composer seq_length_warmup")
@dataclass(frozen=True)
class Length:
    """Reads a share of a sequence's tokens, from a place that is drawn for each pass.

    On a ramp it goes there in eighths of the way. A sample stays one sample, of fewer tokens.

    Raises:
        TypeError: for a field of another type.
        ValueError: for a share out of range.
    """

    share: float = 0.5
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {self.share}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(length=toward(settings.length, self.share, amount))
