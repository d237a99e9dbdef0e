"""What a recipe is made of: actions, each in its window, on the settings of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from cpfast.arguments import check_fields, check_type, whole
from cpfast.moment import Moment
from cpfast.registry import Registry

__all__ = [
    "ALWAYS",
    "PHASES",
    "Action",
    "EpochSettings",
    "StepShape",
    "Window",
    "actions",
    "toward",
]

PHASES = ("always", "during", "after")


class StepShape(NamedTuple):
    """What changes what a step computes, and so keys the compiled step or the CUDA graph."""

    frozen: int = 0
    augment: float = 1.0
    weight_decay: float = 1.0
    mixing: str | None = None
    """"mixup", "cutmix", or None."""
    resolution: float = 1.0
    length: float = 1.0
    batch: int = 1


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
    augment: float = 1.0
    """What the ranges of the augmentation are multiplied by; 0: images as they are."""
    weight_decay: float = 1.0
    """What the weight decay is multiplied by."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0: off."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution; 0: off."""
    resolution: float = 1.0
    """Share of the height and of the width that images are averaged down to."""
    length: float = 1.0
    """Share of a sequence's tokens that are read."""
    batch: int = 1
    """Batches that are taken as one."""

    @property
    def shape(self) -> StepShape:
        """What keys the compiled step; the rest are numbers that a step reads."""
        mixing = "mixup" if self.mixup > 0 else "cutmix" if self.cutmix > 0 else None
        return StepShape(
            self.frozen,
            self.augment,
            self.weight_decay,
            mixing,
            self.resolution,
            self.length,
            self.batch,
        )


def toward(before: float, after: float, amount: float) -> float:
    """On a ramp from ``before`` to ``after``: in eighths of the way, since each value of what a
    step computes is compiled and captured for itself."""
    return before + math.ceil(8 * amount) / 8 * (after - before)


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
        TypeError: for a field of another type.
        ValueError: for an unknown phase, or numbers out of range.

    Source: arXiv 2506.15954, whose annealing begins at epoch cp + ceil((T - cp) a).
    """

    phase: str = "always"
    begin: float = 0.0
    end: float = 1.0
    until: float = 1.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.phase not in PHASES:
            raise ValueError(f"phase: expected one of {PHASES}, got {self.phase!r}")
        for name in ("begin", "end", "until", "ramp"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a fraction in [0, 1], got {value}")
        if self.begin > self.end:
            raise ValueError(f"begin: expected at most end, {self.end}, got {self.begin}")
        if self.until < self.begin and self.phase == "always":
            raise ValueError(f"until: expected at least begin, {self.begin}, got {self.until}")
        if self.phase == "during" and (self.begin, self.end) != (0, 1):
            raise ValueError(
                "phase: 'during' is whole, since its length is not known while it lasts; "
                f"got begin {self.begin}, end {self.end}"
            )

    @classmethod
    def between(cls, first: int, last: int, total_epochs: int) -> Window:
        """Of the whole training, from epoch ``first`` to before ``last``, counted from 0.

        Raises:
            ValueError: for epochs that are not in order, or outside the training.
        """
        whole("total_epochs", total_epochs, least=1)
        whole("first", first, least=0)
        whole("last", last, least=first, most=total_epochs)
        # Half an epoch less, lest rounding reaches the next one.
        begin, end = (max(0.0, (epoch - 0.5) / total_epochs) for epoch in (first, last))
        return cls(begin=begin, end=min(1.0, end))

    def amount(self, moment: Moment) -> float:
        """How much of the action applies: 0 outside the window, 1 in it, between them on a ramp."""
        check_type("moment", moment, Moment)
        span = self.span(moment)
        if moment.epoch not in span:
            return 0.0
        ramp = math.ceil(moment.total_epochs * self.ramp)
        return min(1.0, (moment.epoch - span.start + 1) / ramp) if ramp else 1.0

    def span(self, moment: Moment) -> range:
        """The epochs in which the action applies, as far as ``moment`` can tell: empty where it is
        outside the phase."""
        check_type("moment", moment, Moment)
        total, first = moment.total_epochs, 0
        if moment.in_period:
            if self.phase == "after":
                return range(0)
        elif self.phase == "during":
            return range(0)
        elif self.phase == "after":
            assert moment.period_end is not None
            first = moment.period_end
        length = total - first
        begin = first + math.ceil(length * self.begin)
        return range(
            begin, min(first + math.ceil(length * self.end), math.ceil(total * self.until))
        )


ALWAYS = Window()


@runtime_checkable
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
