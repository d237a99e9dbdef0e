"""How large images are."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions, toward

__all__ = ["Resolution"]


@actions.register("resolution", source="mosaicml/composer progressive_resizing; libffcv/ffcv")
@dataclass(frozen=True)
class Resolution:
    """Averages images down to a share of their height and width; the model runs at that size.

    On a ramp it goes there in eighths of the way: ``Resolution(0.5)`` before
    ``Resolution(1.0, Window(begin=0.3, ramp=0.4))`` grows from half to full size. Evaluation is at
    full size. Where the blur of a small size lasts beyond 25 to 40 % of the training, it does
    damage that does not heal (arXiv 1711.08856).

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
        return settings._replace(resolution=toward(settings.resolution, self.share, amount))
