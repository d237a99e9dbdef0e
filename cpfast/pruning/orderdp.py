"""OrderDP: the hardest of a random pool."""

from __future__ import annotations

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, descending, policies

__all__ = ["OrderDP"]


@policies.register("orderdp", source="arXiv 2606.08574; shengze-xu/OrderDP")
class OrderDP(Policy):
    """Of int(pool x N) random samples, the share ``keep`` of the highest last losses.

    Nothing is weighted, so that the mean loss of what is kept is another than that of all. Samples
    without a finite loss come first. Published (pool, keep): .8, .375 for CIFAR-100; .75, .8 for
    ImageNet with ResNet-50; the released code's defaults are .5, .5. It never anneals there.

    Raises:
        ValueError: for a pool out of range.
    """

    def __init__(self, pool: float = 0.5) -> None:
        if not 0 < pool <= 1:
            raise ValueError(f"pool: expected a share in (0, 1], got {pool}")
        self.pool = pool

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        pool = draw.order(samples.size, samples.device)[: max(1, int(self.pool * samples.size))]
        hardest = descending(samples.columns["loss"][pool])[: max(1, int(keep * len(pool)))]
        return Chosen.of(samples.mask(pool[hardest]))
