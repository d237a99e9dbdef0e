"""Less of the learning rate, of the weight decay, of the augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Augment", "LearningRate", "WeightDecay"]


@dataclass(frozen=True)
class _Scaled:
    factor: float = 0.0
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ValueError(f"factor: expected a share in [0, 1], got {self.factor}")

    def scaled(self, value: float, amount: float) -> float:
        return value * (1 - amount * (1 - self.factor))


@actions.register("learning_rate", source="arXiv 2506.15954, its steps of a tenth")
@dataclass(frozen=True)
class LearningRate(_Scaled):
    """Multiplies the schedule's learning rate, by default by a tenth.

    Args:
        factor: in [0, 1].

    Raises:
        ValueError: for a factor out of range.
    """

    factor: float = 0.1

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(lr=self.scaled(settings.lr, amount))


@actions.register("weight_decay", source="arXiv 1905.13277")
@dataclass(frozen=True)
class WeightDecay(_Scaled):
    """Multiplies the weight decay, by default by 0.

    A step that is captured as a CUDA graph is captured anew for each value, so ramps are dear.

    Args:
        factor: in [0, 1].

    Raises:
        ValueError: for a factor out of range.
    """

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(weight_decay=self.scaled(settings.weight_decay, amount))


@actions.register("augment", source="arXiv 1905.13277")
@dataclass(frozen=True)
class Augment(_Scaled):
    """Multiplies the strength of the augmentation, by default by 0; see :class:`WeightDecay`.

    Args:
        factor: in [0, 1]: of rotation and shift. Mirroring is left out where it is 0.

    Raises:
        ValueError: for a factor out of range.
    """

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        return settings._replace(augment=self.scaled(settings.augment, amount))
