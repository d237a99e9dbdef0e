"""SeTa: a window slides over groups of samples, from the easy to the hard."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, ascending, at_ranks, policies

__all__ = ["SeTa", "kmeans_bounds"]

ITERATIONS = 50  # Lloyd's; on sorted numbers one takes microseconds


@policies.register("seta", source="mrazhou/SeTa, seta.py")
class SeTa(Policy):
    """Of a random share ``keep`` of the samples, those of neighbouring groups by loss.

    k-means on the last losses makes ``groups`` groups, in the order of their means. An epoch takes
    round(groups x alpha) of them side by side, one step further each epoch and from the easiest
    again after the hardest. Epoch 0 is full, and from the fraction ``delta`` of the training on the
    random share is all. Nothing is weighted. Published: keep .9, groups 5, alpha .9 for CIFAR-100;
    1, 5, .6 for ImageNet.

    The groups are of the random share in the released code, and of all samples here.

    Raises:
        ValueError: for numbers out of range.
    """

    keep = 0.9

    def __init__(self, groups: int = 5, alpha: float = 0.9, delta: float = 0.875) -> None:
        if groups < 1:
            raise ValueError(f"groups: expected at least 1, got {groups}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha: expected a share in (0, 1], got {alpha}")
        if not 0 <= delta <= 1:
            raise ValueError(f"delta: expected a fraction in [0, 1], got {delta}")
        self.groups, self.alpha, self.delta = groups, alpha, delta

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch == 0

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        if moment.fraction >= self.delta:
            keep = min(max(keep, 0.1), 1.0)
            return Chosen.everyone(samples, take=max(1, int(keep * samples.size)))
        size, device = samples.size, samples.device
        drawn = samples.mask(draw.order(size, device)[: max(1, int(keep * size))])
        loss = samples.columns["loss"]
        order = ascending(loss)
        bounds = kmeans_bounds(loss[order], self.groups)
        width = max(1, round(self.groups * self.alpha))
        first = moment.epoch % (self.groups - width + 1)
        place = torch.arange(size, device=device)
        in_window = (place >= bounds[first]) & (place < bounds[first + width])
        mask = at_ranks(order, in_window) & drawn
        return Chosen.of(torch.where(mask.any(), mask, drawn))


def kmeans_bounds(ordered: Tensor, groups: int) -> Tensor:
    """Where k-means cuts ascending numbers: [groups + 1] int64, from 0 to N.

    Begins with quantiles. What is not finite counts as the largest that is; a mean without numbers
    stays.
    """
    size, device = len(ordered), ordered.device
    finite = torch.where(ordered.isfinite(), ordered, -torch.inf)
    values = torch.where(ordered.isfinite(), ordered, finite.max()).double().nan_to_num(0, 0, 0)
    # Whole numbers add up to the same in any order.
    unit = values.abs().max().clamp_min(1e-300) / 2**30
    sums = torch.cat([torch.zeros(1, dtype=torch.int64, device=device),
                      (values / unit).round().long().cumsum(0)])  # fmt: skip
    quantiles = (torch.arange(groups, device=device) * 2 + 1) * size // (2 * groups)
    means = values[quantiles.clamp_max(size - 1)]
    first = torch.zeros(1, dtype=torch.int64, device=device)
    last = torch.full_like(first, size)
    for _ in range(ITERATIONS):
        cuts = torch.searchsorted(values, (means[1:] + means[:-1]) / 2)
        bounds = torch.cat([first, cuts, last])
        counts = bounds.diff()
        own = (sums[bounds[1:]] - sums[bounds[:-1]]) * unit / counts.clamp_min(1)
        means = torch.where(counts > 0, own, means)
    return bounds
