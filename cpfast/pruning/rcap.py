"""RCAP: classes of high loss get a larger share, and within them samples of high loss."""

from __future__ import annotations

import math

import torch

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, descending, policies

__all__ = ["Rcap"]


@policies.register("rcap", source="arXiv 2606.11761")
class Rcap(Policy):
    """Draws within each class by softmax(loss / beta), as many as the root of its loss x prior.

    Losses are clipped at ln C, that of a guess. A class of prior p and mean loss l gets a share of
    floor(keep x N) in proportion to sqrt(l p), at most all of its samples; what it cannot take goes
    to the others. Nothing is weighted: the worst class is kept, not the distribution. Epoch 0 is
    full. The paper's beta is between 1/3 and 3.

    Raises:
        ValueError: for a beta that is not positive.
    """

    needs_labels = True

    def __init__(self, beta: float = 1.0) -> None:
        if not 0 < beta < math.inf:
            raise ValueError(f"beta: expected a positive number, got {beta}")
        self.beta = beta

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch == 0

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        assert samples.labels is not None
        labels, classes, size = samples.labels, samples.classes, samples.size
        most = math.log(classes) if classes > 1 else 1.0
        loss = samples.columns["loss"].nan_to_num(most, most, most).clamp(0, most)
        count = torch.zeros(classes, dtype=torch.int64, device=samples.device)
        count.index_add_(0, labels, torch.ones_like(labels))
        # Whole numbers add up to the same in any order.
        units = torch.zeros_like(count).index_add_(0, labels, (loss.double() * 2**30).long())
        kept = self._kept(units.double().sqrt(), count, math.floor(keep * size))
        # Efraimidis and Spirakis: the largest of loss / beta + Gumbel noise are a draw without
        # replacement by softmax.
        noise = -(-draw.uniform(samples.everyone()).log()).log()
        order = descending(loss / self.beta + noise)
        order = order[labels[order].int().argsort(stable=True)]
        # Now class by class: of each, the first that are kept.
        end = (count.cumsum(0) - count + kept).repeat_interleave(count, output_size=size)
        mask = torch.zeros(size, dtype=torch.bool, device=samples.device)
        return Chosen.of(mask.index_copy_(0, order, samples.everyone() < end))

    @staticmethod
    def _kept(share: torch.Tensor, count: torch.Tensor, total: int) -> torch.Tensor:
        """By class, in proportion to its share: [C] int64, at most its count, at least 1 in all."""
        # Those are full that have least room for their share: found by sorting, in whole numbers.
        weight = (share / share.max().clamp_min(1e-300) * 2**30).long().clamp_min(1)
        order = (count / weight).argsort(stable=True)
        room, part = count[order], (weight * (count > 0))[order]
        level = (total - room.cumsum(0) + room) / (part.flip(0).cumsum(0).flip(0)).clamp_min(1)
        is_full = level * part > room
        first = is_full.long().cumprod(0).sum().clamp_max(len(share) - 1)
        kept = torch.minimum(level.gather(0, first[None]) * weight, count.double()).clamp_min(0)
        kept = torch.where(count > 0, kept, 0.0)
        whole = kept.floor().long()
        # What the fractions leave over goes to the largest of them.
        left = total - whole.sum()
        order = torch.where(whole < count, kept - whole, -1.0).argsort(descending=True, stable=True)
        extra = torch.arange(len(share), device=share.device) < left
        whole.index_add_(0, order, extra.long())
        whole = torch.minimum(whole, count)
        return torch.where(whole.sum() > 0, whole, (count > 0).long())
