"""InfoBatch: some of the samples below the mean loss are left out, the others weighted up."""

from __future__ import annotations

from cpfast import ops
from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, policies

__all__ = ["InfoBatch"]


@policies.register("infobatch", source="arXiv 2303.04947")
class InfoBatch(Policy):
    """Keeps a random share of the samples whose last loss is below the mean, weighted by 1 / keep.

    Epoch 0 is full. Of M samples below the mean, floor(keep x M) are kept; all others are kept with
    weight 1, those that have no finite loss among them.
    """

    unbiased = True

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch == 0

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        chosen = ops.select_samples(samples.columns["loss"], keep=keep, **draw._asdict())
        return Chosen(chosen.indices, chosen.count, chosen.weights)
