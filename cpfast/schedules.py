"""Learning-rate schedules as functions of the fraction of training done.

A schedule made for a number of steps ends early or late when an epoch's length changes, as it does
when repeats or samples are dropped: a one-cycle made for 100 steps and run for 60 ends at 59 % of
its peak. These take the fraction in [0, 1] and return a multiplier of the base learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cpfast.arguments import fraction as check_fraction
from cpfast.arguments import real, typed
from cpfast.forms import Finite, Open, Several, check

__all__ = [
    "FractionLR",
    "FractionSchedule",
    "Schedule",
    "constant",
    "cosine",
    "linear",
    "one_cycle",
    "step",
]

Schedule = Callable[[float], float]


def _warmed_up(warmup: float, decay: Schedule) -> Schedule:
    """Rises linearly to 1 over the first ``warmup`` of training, then follows ``decay``."""
    check_fraction("warmup", warmup)

    def schedule(fraction: float) -> float:
        if fraction < warmup:
            return fraction / warmup
        return decay((fraction - warmup) / (1 - warmup)) if warmup < 1 else 1.0

    return schedule


@typed
def constant(warmup: float = 0.0) -> Schedule:
    """1 after the warm-up."""
    return _warmed_up(warmup, lambda fraction: 1.0)


@typed
def cosine(warmup: float = 0.0, floor: float = 0.0, power: float = 1.0) -> Schedule:
    """Half a cosine from 1 to ``floor`` (arXiv 1608.03983, equation 5, without restarts).

    Args:
        power: above 0, of the fraction after the warm-up: above 1 it falls later, and faster then.
    """
    check_fraction("floor", floor)
    power = _positive("power", power)
    return _warmed_up(
        warmup, lambda f: floor + (1 - floor) * (1 + math.cos(math.pi * f**power)) / 2
    )


@typed
def linear(warmup: float = 0.0, floor: float = 0.0, power: float = 1.0) -> Schedule:
    """A straight line from 1 to ``floor``.

    Args:
        power: as of :func:`cosine`.
    """
    check_fraction("floor", floor)
    power = _positive("power", power)
    return _warmed_up(warmup, lambda f: 1 - (1 - floor) * f**power)


def _positive(name: str, value: float) -> float:
    value = real(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return value


@typed
def step(milestones: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> Schedule:
    """Multiplied by ``factor`` at each milestone; (1/2, 3/4) are epochs 100 and 150 of 200."""
    for milestone in milestones:
        check_fraction("milestones", milestone)
    return lambda fraction: factor ** sum(fraction >= m for m in milestones)


@typed
def one_cycle(peak: float = 0.3, start: float = 0.04, floor: float = 0.0) -> Schedule:
    """Cosine from ``start`` to 1 at fraction ``peak``, then to ``floor`` (arXiv 1708.07120)."""
    for name, value in (("peak", peak), ("start", start), ("floor", floor)):
        check_fraction(name, value)

    def schedule(fraction: float) -> float:
        if fraction < peak:
            return start + (1 - start) * (1 - math.cos(math.pi * fraction / peak)) / 2
        rest = (fraction - peak) / (1 - peak) if peak < 1 else 1.0
        return floor + (1 - floor) * (1 + math.cos(math.pi * rest)) / 2

    return schedule


@runtime_checkable
class Rated(Protocol):
    """An optimizer, or what wraps one, such as :class:`cpfast.Layca`."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


class FractionSchedule:
    """Sets an optimizer's learning rates to their base values times ``schedule(fraction)``.

    Base values are those of the parameter groups at construction. A learning rate that is a
    tensor is written in place, so that captured CUDA graphs see it.
    """

    @typed
    def __init__(self, optimizer: Rated, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def step(self, fraction: float, factor: float = 1.0) -> float:
        """Sets the learning rates for the fraction of training done; returns the multiplier.

        Args:
            factor: what the schedule's value is multiplied by, such as a policy's.

        Raises:
            ValueError: where the fraction is outside [0, 1].
        """
        check_fraction("fraction", fraction)
        multiplier = self.schedule(fraction) * real("factor", factor)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * multiplier)
            else:
                group["lr"] = base * multiplier
        return multiplier

    def state_dict(self) -> dict[str, Any]:
        """The base learning rates: the optimizer's own state holds those of the moment."""
        return {"base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: where the optimizer has another number of parameter groups, or something is
                no number.
        """
        check(state, Open({"base_lrs": Several(Finite)}), "state_dict")
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"state_dict['base_lrs']: expected {len(self.base_lrs)} learning rates, "
                f"got {len(state['base_lrs'])}"
            )
        self.base_lrs = [float(lr) for lr in state["base_lrs"]]


class FractionLR(LRScheduler):
    """:class:`FractionSchedule` as a torch scheduler, for trainers that take nothing else.

    Give :meth:`step` the fraction of training done; or set :attr:`fraction`, where a trainer calls
    ``step()``, which then keeps to it::

        scheduler = FractionLR(optimizer, cosine())
        scheduler.fraction = (epoch + batch / len(loader)) / total_epochs
        scheduler.step()

    Args:
        optimizer: its learning rates at construction are the base values.
        schedule: from the fraction in [0, 1] to a multiplier.

    Attributes:
        fraction: of training done, in [0, 1].
    """

    @typed
    def __init__(self, optimizer: Optimizer, schedule: Schedule, last_epoch: int = -1) -> None:
        self.schedule = schedule
        self.fraction = 0.0
        super().__init__(optimizer, last_epoch)

    def step(self, fraction: float | None = None) -> None:
        """Sets the learning rates.

        Raises:
            ValueError: where the fraction is outside [0, 1].
        """
        if fraction is not None:
            self.fraction = real("fraction", fraction)
        check_fraction("fraction", self.fraction)
        super().step()

    def get_lr(self) -> list[float | Tensor]:
        """The base values times ``schedule(fraction)``."""
        multiplier = self.schedule(self.fraction)
        return [float(base) * multiplier for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The fraction and the base values; the schedule is a function, which is not saved."""
        return {key: value for key, value in super().state_dict().items() if key != "schedule"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: where something is missing, of another type or out of range; nothing is
                changed then.
        """
        rates = [float if isinstance(rate, float) else object for rate in self.base_lrs]
        form = Open({"fraction": Finite, "last_epoch": int, "base_lrs": rates})
        check(state_dict, form, "state_dict")
        check_fraction("state_dict['fraction']", state_dict["fraction"])
        super().load_state_dict(state_dict)
