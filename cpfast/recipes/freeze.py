"""No gradient for layers that have stopped turning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import SGD, AdamW, Optimizer

from cpfast.arguments import check_fields
from cpfast.moment import Moment
from cpfast.recipes.action import ALWAYS, EpochSettings, Window, actions

__all__ = ["Freeze", "diffusion"]

_SATURATED = 0.95  # beyond it, 1 - rotation is of the size of chance


@actions.register(
    "freeze", source="arXiv 2201.06227, with rotation for activations; null: this project"
)
@dataclass(frozen=True)
class Freeze:
    """Freezes the first layers, from the input side, whose rotation has stopped.

    A layer has stopped when its rotation changed by at most ``below`` of itself within the last
    ``epochs`` epochs. With ``excess``, it has also stopped when it turned by at most 1 + excess
    times what noise alone would have turned it by in each of them (``Moment.diffusion``: in the
    equilibrium of weight decay and gradient noise, -ln(1 - rotation) grows by lr x weight decay /
    (1 - momentum) a step). That says nothing of a rotation above .95, which hardly changes.

    All layers before the first that has not stopped get no gradient, so that the backward pass
    ends there; the last layer never is. Frozen layers do not turn, and stay frozen, until the
    learning rate rises: what was measured before a restart plays no part. The forward pass is as
    before, and BatchNorm's running statistics follow it.

    Raises:
        TypeError: for a field of another type.
        ValueError: for numbers out of range.
    """

    below: float = 0.02
    epochs: int = 3
    excess: float | None = None
    window: Window = ALWAYS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.below < 1:
            raise ValueError(f"below: expected a share in [0, 1), got {self.below}")
        if self.epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {self.epochs}")
        if self.excess is not None and not 0 <= self.excess < math.inf:
            raise ValueError(f"excess: expected a number from 0 on, got {self.excess}")

    def apply(self, settings: EpochSettings, amount: float, moment: Moment) -> EpochSettings:
        first = _last_rise(moment)
        measured = moment.rotations[first : moment.epoch]
        if len(measured) <= self.epochs:
            return settings
        noise = moment.diffusion[first : moment.epoch][-self.epochs :]
        frozen = 0
        for layer in zip(*measured[-1 - self.epochs :], strict=True):
            if not (self._is_still(layer) or self._diffuses(layer, noise)):
                break
            frozen += 1
        frozen = min(frozen, len(measured[-1]) - 1)
        return settings._replace(frozen=max(settings.frozen, frozen))

    def _is_still(self, rotations: Sequence[float]) -> bool:
        return abs(rotations[-1] - rotations[0]) <= self.below * rotations[-1]

    def _diffuses(self, rotations: Sequence[float], noise: Sequence[float]) -> bool:
        if self.excess is None or len(noise) < self.epochs or not max(rotations) <= _SATURATED:
            return False
        turned = [-math.log1p(-r) for r in rotations]
        return all(
            after - before <= (1 + self.excess) * expected
            for (before, after), expected in zip(itertools.pairwise(turned), noise, strict=True)
        )


def _last_rise(moment: Moment) -> int:
    """The epoch with which the learning rate last rose, 0 where it never did."""
    pairs = itertools.pairwise(moment.lrs[: moment.epoch + 1])
    return max((epoch for epoch, (before, now) in enumerate(pairs, 1) if now > before), default=0)


def diffusion(optimizer: Optimizer, lr: float) -> float:
    """What -ln(1 - rotation) of a scale-invariant layer grows by in a step of a learning rate, if
    its gradients are noise alone: lr x weight decay / (1 - momentum) of SGD, without the division
    of AdamW; NaN of the others, whose equilibrium is not known.

    Source: the equilibrium of weight decay and noise, arXiv 2305.17212.
    """
    group = optimizer.param_groups[0]
    if isinstance(optimizer, SGD):
        return lr * group["weight_decay"] / (1 - group["momentum"])
    if isinstance(optimizer, AdamW):
        return lr * group["weight_decay"]
    return math.nan
