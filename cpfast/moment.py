"""What every part that may change from epoch to epoch is told: a moment of a training."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Moment"]


class Moment(NamedTuple):
    """A moment of a training: the settings, the selection and the decision of an epoch follow from
    it, and from what was measured before, alone. So a resume, a fork and a trainer that jumps to
    an epoch get the same answer as an undisturbed run.
    """

    epoch: int
    """From 0: as many epochs are completed."""
    total_epochs: int
    """T, the length of the training in epochs."""
    period_end: int | None = None
    """Epochs completed when the critical period ended, as ``CriticalPeriodDetector.end_epoch`` has
    it; None while it lasts."""
    rotations: tuple[tuple[float, ...], ...] = ()
    """The layers' rotation after each completed epoch, where it is measured."""
    diffusion: tuple[float, ...] = ()
    """By how much each completed epoch would turn a layer if its gradients were noise alone: the
    growth of -ln(1 - rotation) in the equilibrium of a scale-invariant layer, the sum over the
    steps of lr x weight decay / (1 - momentum). NaN where it is not known."""
    lrs: tuple[float, ...] = ()
    """The schedule's value at the beginning of each epoch, the coming one included."""

    @property
    def in_period(self) -> bool:
        """Whether the critical period lasts in this epoch."""
        return self.period_end is None or self.epoch < self.period_end

    @property
    def fraction(self) -> float:
        """Of the training that is done when the epoch begins, in [0, 1)."""
        return self.epoch / self.total_epochs
