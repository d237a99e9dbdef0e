"""Selective Backprop: of each batch, the samples of larger loss are trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import BatchFilter, Chosen, Draw, Policy, Samples, policies

__all__ = ["SelectiveBackprop"]


@policies.register(
    "selective_backprop", source="arXiv 1910.00762; mosaicml/composer selective_backprop"
)
class SelectiveBackprop(Policy):
    """Trains on a share ``keep`` of each batch, drawn with a preference for large losses.

    A forward pass without a gradient gives the losses; a sample at percentile p of them is drawn,
    without replacement, with a probability in proportion to p^(1 / keep - 1). Every ``every``-th
    batch is trained whole. It is on between the fractions ``begin`` and ``end`` of the training.

    Raises:
        ValueError: for numbers out of range.
    """

    columns = ()

    def __init__(self, begin: float = 0.5, end: float = 0.9, every: int = 2) -> None:
        if not 0 <= begin <= end <= 1:
            raise ValueError(f"begin, end: expected fractions in order, got {begin}, {end}")
        if every < 2:
            raise ValueError(f"every: expected at least 2, or nothing is left out, got {every}")
        self.begin, self.end, self.every = begin, end, every

    def is_full(self, moment: Moment) -> bool:
        return not self.begin <= moment.fraction < self.end

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        return Chosen.everyone(samples)

    def batch_filter(self, moment: Moment, keep: float) -> BatchFilter | None:
        return None if self.is_full(moment) else _ByPercentile(keep, self.every)


class _ByPercentile:
    def __init__(self, keep: float, every: int) -> None:
        self.keep, self.every = keep, every

    def kept(self, batch_size: int) -> int:
        return max(1, round(self.keep * batch_size))

    def choose(self, losses: Tensor, uniform: Tensor) -> Tensor:
        size = len(losses)
        order = losses.argsort(stable=True)
        percentile = (torch.arange(size, device=losses.device) + 0.5) / size
        preference = (1 / self.keep - 1) * percentile.log()
        # Efraimidis and Spirakis: the largest of log(u) / weight, here as a Gumbel noise on the
        # logarithm, are a draw without replacement.
        noise = -(-uniform[order].log()).log()
        return order[(preference + noise).topk(self.kept(size)).indices]
