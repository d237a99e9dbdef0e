"""What a recipe is made of: actions, each in its window, on the settings of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cpfast.moment import Moment
from cpfast.registry import Registry

__all__ = ["ALWAYS", "PHASES", "Action", "EpochSettings", "Window", "actions"]

PHASES = ("always", "during", "after")


class EpochSettings(NamedTuple):
    """What one epoch spends, and how."""

    repeats: int = 1
    """Augmented passes over the data."""
    prune: bool = False
    """Whether the passes may leave samples out."""
    keep: float | None = None
    """Share that pruning keeps; None: as the pruner was made."""
    lr: float = 1.0
    """What the schedule's learning rate is multiplied by."""
    frozen: int = 0
    """Layers without a gradient, from the input side: of those whose rotation is measured."""
    weight_decay: float = 1.0
    """What the configured weight decay is multiplied by."""
    augment: float = 1.0
    """Share of the configured augmentation; 0: none."""

    @property
    def shape(self) -> tuple[float, ...]:
        """What changes what is computed, or is held fast where a step is captured, and so keys the
        compiled step or the CUDA graph; the rest are numbers that a step reads."""
        return (self.frozen, self.weight_decay, self.augment)


@dataclass(frozen=True)
class Window:
    """When an action applies: in epochs of one phase of the training.

    Args:
        phase: "always", "during" the critical period, or "after" it.
        begin, end: fractions of the phase; n epochs from epoch s on are cut at s + ceil(n x
            fraction). "during" is whole, since its length is not known while it lasts.
        until: fraction of the whole training at which it ends at the latest.
        ramp: fraction of the whole training over which the amount rises to 1.

    Raises:
        ValueError: for an unknown phase, or numbers out of range.

    Source: arXiv 2506.15954, whose annealing begins at epoch cp + ceil((T - cp) a).
    """

    phase: str = "always"
    begin: float = 0.0
    end: float = 1.0
    until: float = 1.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase: expected one of {PHASES}, got {self.phase!r}")
        for name in ("begin", "end", "until", "ramp"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a fraction in [0, 1], got {value}")
        if self.begin > self.end:
            raise ValueError(f"begin: expected at most end, {self.end}, got {self.begin}")
        if self.phase == "during" and (self.begin, self.end) != (0, 1):
            raise ValueError(
                "phase: 'during' is whole, since its length is not known while it lasts; "
                f"got begin {self.begin}, end {self.end}"
            )

    @classmethod
    def between(cls, first: int, last: int, total_epochs: int) -> Window:
        """Of the whole training, from epoch ``first`` to before ``last``, counted from 0."""
        # Half an epoch less, lest rounding reaches the next one.
        begin, end = (max(0.0, (epoch - 0.5) / total_epochs) for epoch in (first, last))
        return cls(begin=begin, end=min(1.0, end))

    def amount(self, moment: Moment) -> float:
        """How much of the action applies: 0 outside the window, 1 in it, between them on a ramp."""
        total, first = moment.total_epochs, 0
        if self.phase == "during" and not moment.in_period:
            return 0.0
        if self.phase == "after":
            if moment.in_period:
                return 0.0
            assert moment.period_end is not None
            first = moment.period_end
        length = total - first
        begin = first + math.ceil(length * self.begin)
        end = min(first + math.ceil(length * self.end), math.ceil(total * self.until))
        if not begin <= moment.epoch < end:
            return 0.0
        ramp = math.ceil(total * self.ramp)
        return min(1.0, (moment.epoch - begin + 1) / ramp) if ramp else 1.0


ALWAYS = Window()


class Action(Protocol):
    """Changes the settings of an epoch. It holds numbers alone, and nothing that it was told."""

    @property
    def window(self) -> Window:
        """When it applies."""
        ...

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        """The settings, changed by ``amount`` in (0, 1] of what the action does; pure."""
        ...


actions: Registry[Action] = Registry("action", "cpfast.recipes", "cpfast.actions")
