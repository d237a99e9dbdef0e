"""Known inclusion probabilities: an exact number of samples, weighted by the inverses."""

from __future__ import annotations

import math

import torch

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, ascending, at_ranks, policies

__all__ = ["Budget"]


@policies.register("budget", source="this project; systematic sampling after Madow 1949")
class Budget(Policy):
    """Draws exactly floor(keep x N) samples, each with a known probability that grows with loss.

    The sample whose loss has the rank q in (0, 1) is drawn with the probability
    p = least + (1 - least) q^g: least is ``floor`` times keep, and g makes the probabilities add up
    to the budget. Systematic sampling along a random order holds both, each probability and the
    number. A loss is weighted by 1 / p, at most by ``cap``: without one the weighted sum is an
    unbiased estimate of that over all samples, with one it misses the share that the plan's
    ``bias`` tells. Epoch 0 is full; samples without a finite loss have the highest ranks.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, floor: float = 0.25, cap: float | None = None) -> None:
        if not 0 < floor <= 1:
            raise ValueError(f"floor: expected a share in (0, 1], got {floor}")
        if cap is not None and not cap >= 1:
            raise ValueError(f"cap: expected a weight of 1 or more, got {cap}")
        self.floor, self.cap = floor, cap
        self.unbiased = cap is None

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch == 0

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        size, device = samples.size, samples.device
        budget = max(1, math.floor(keep * size))
        if budget == size:
            return Chosen.everyone(samples)
        loss = samples.columns["loss"]
        by_rank = self._probabilities(size, keep, budget, device)
        step = by_rank.sum() // budget
        p = at_ranks(ascending(loss), by_rank)
        order = draw.order(size, device)
        end = p[order].cumsum(0)
        everyone = samples.everyone()
        offset = (draw.uniform(everyone[:1] + size).double() * step).long()
        is_drawn = (end + offset) // step != (end - p[order] + offset) // step
        weights = step.double() / p
        if self.cap is not None:
            weights = weights.clamp_max(self.cap)
        chosen = Chosen.of(at_ranks(order, is_drawn), weights=weights.float())
        if self.cap is None:
            return chosen
        known = torch.where(loss.isfinite(), loss, 0.0).double()
        missed = ((1 - p / step * weights) * known).sum() / known.sum()
        return chosen._replace(bias=missed)

    def _probabilities(
        self, size: int, keep: float, budget: int, device: torch.device
    ) -> torch.Tensor:
        """[N] int64 by rank, in units that add up to a multiple of the budget: sums of whole
        numbers are the same in any order, and so on every device."""
        bits = min(40, 62 - size.bit_length())
        least = self.floor * keep
        power = (1 - least) / (keep - least) - 1 if least < keep else 0.0
        q = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) / size
        share = least + (1 - least) * q**power if power else torch.full_like(q, keep)
        units = (share * 2**bits).round().long().clamp_min(2)
        # The highest ranks give up a unit each, of a million million.
        too_many = units.sum() % budget
        return units - (torch.arange(size, 0, -1, device=device) <= too_many).long()
