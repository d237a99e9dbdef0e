"""What a criterion of the critical period's end is, and what it may measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from cpfast.moment import Moment
from cpfast.registry import Registry

__all__ = ["NEEDS", "Criterion", "Gradients", "Measured", "Paths", "Probe", "criteria"]

NEEDS = ("paths", "gradients", "accuracy", "scales", "batches")
"""What a criterion may need of a probe besides the rotation and the losses: ``paths``,
``gradients`` and ``accuracy`` are added up in each step, ``scales`` are those of batch
normalisation, ``batches`` go through the model for the measurement alone."""


class Measured(NamedTuple):
    """What a criterion measured after an epoch."""

    epoch: int
    """Epochs completed, from 1."""
    values: tuple[float, ...]
    """What it measured, always as many numbers."""


class Paths(NamedTuple):
    """How the layers' weights went through an epoch's steps."""

    displacement: Tensor
    """[L] float64: ``|w_n - w_0|^2`` from the epoch's first weights to its last."""
    steps: Tensor
    """[L] float64: the sum of ``|w_(t+1) - w_t|^2``."""
    count: int  # type: ignore[assignment]  # it hides tuple.count
    """n, the number of steps."""


class Gradients(NamedTuple):
    """What the gradients of an epoch's steps came to."""

    norms: Tensor
    """[L] float64: the norm of each layer's sum of gradients; NaN of a layer without any."""
    decrease: Tensor
    """[] float64: the mean over the steps of the learning rate times the squared norm of the whole
    gradient, which is the decrease of the loss to first order."""


class Probe(Protocol):
    """What an epoch showed: each quantity is measured once, when it is first asked for, shared by
    all criteria, and stays on the device. :class:`cpfast.detection.probe.ModelProbe` is one."""

    @property
    def measured_samples(self) -> int:
        """Samples that went forward and backward in this epoch to measure by, which are charged to
        the run: those of the measurements that need ``batches``."""
        ...

    def rotation(self) -> Tensor:
        """The rotation of the layers that are trained: [L] float32."""
        ...

    def paths(self) -> Paths:
        """How the weights moved; needs ``paths``."""
        ...

    def path_null(self) -> float:
        """What ``displacement / steps`` is in expectation where gradients are noise alone."""
        ...

    def rank_stability(self) -> Tensor:
        """Spearman's correlation of the samples' losses with those an epoch ago: [] float64; NaN
        after the first epoch."""
        ...

    def gradients(self) -> Gradients:
        """Of the epoch's steps; needs ``gradients``."""
        ...

    def accuracy(self) -> Tensor:
        """The share of the samples trained on that were classified correctly, as they were trained
        on: [] float64; NaN without a step; needs ``accuracy``."""
        ...

    def scales(self) -> Tensor:
        """Those of all batch normalisation: [C] float32; needs ``scales``."""
        ...

    def mask_distances(self, share: float, count: int) -> Tensor:
        """Where that share of ``scales`` is pruned, the smallest by magnitude: the share of the
        channels in which the mask differs from those of the last ``count`` epochs, [count] float64,
        the newest first; NaN where there is none yet; needs ``scales``."""
        ...

    def fisher_trace(self, batches: int) -> Tensor:
        """An unbiased estimate of the trace of the Fisher information, per prediction, from so many
        batches: [] float64; needs ``batches``."""
        ...

    def gradient_similarities(self, batches: int) -> Tensor:
        """The cosines of the gradients of each two of so many batches: [batches (batches - 1) / 2]
        float64; needs ``batches``."""
        ...

    def gradient_persistence(self, batches: int) -> Tensor:
        """The cosine of each of so many batches' gradient with its own an epoch ago: [batches]
        float64; NaN after the first epoch; needs ``batches``."""
        ...


@runtime_checkable
class Criterion(Protocol):
    """Measures something after an epoch, and judges from all that it has measured.

    It holds its settings alone: the same history gives the same verdict wherever it is replayed.
    """

    every: int = 1
    """Cadence in epochs of its judging, from ``earliest`` on; it measures after each."""
    earliest: int = 1
    """The first epoch after which it can fire: had it been able to, it might have fired before."""
    is_given: bool = False
    """Whether its epoch is given rather than found."""
    of_rotation: bool = False
    """Whether it measures the mean rotation and nothing else: then a stored curve replays it."""
    needs: tuple[str, ...] = ()
    """What it asks the probe for, of ``NEEDS``."""

    def is_judged(self, epoch: int) -> bool:
        """Whether it judges after so many epochs, from 1."""
        return epoch >= self.earliest and (epoch - self.earliest) % self.every == 0

    def check(self, total_epochs: int) -> None:
        """Whether it goes with a training of that length.

        Raises:
            ValueError: it does not.
        """

    def measure(self, probe: Probe) -> Tensor:
        """[width] floating on the device, without synchronising; always of one width."""
        ...

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        """The number that decides, for logs; None while there is none."""
        return None

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        """A line that says why the period has ended, or None; pure.

        Args:
            history: what was measured so far, the last of it after ``moment.epoch`` epochs.
            moment: its epoch counts the completed ones, and is one that ``is_judged``.
        """
        ...


criteria: Registry[Criterion] = Registry("criterion", "cpfast.detection", "cpfast.criteria")
