"""RePB: hard samples always, easy and absent ones at random, weighted by how rarely they come."""

from __future__ import annotations

import torch

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, policies

__all__ = ["RePB"]


@policies.register("repb", source="RePB, ICLR 2026; written without its code")
class RePB(Policy):
    """Keeps samples of the last epoch whose loss is at least their mean, the others at random.

    Those below the mean are kept with the probability ``keep``, as are those that were absent. A
    sample that was in c of the t epochs so far is weighted by t / c. Epoch 0 is full.

    The paper compares with the mean of a window of one batch while it trains; here the window is
    the last epoch (ours, as no code was to be had).
    """

    def state(self, size: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {
            "times": torch.zeros(size, device=device),
            "present": torch.ones(size, dtype=torch.bool, device=device),
        }

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch == 0

    def update(self, samples: Samples, moment: Moment) -> None:
        assert samples.trained is not None
        samples.state["present"].copy_(samples.trained)
        samples.state["times"].add_(samples.trained)

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        loss, present = samples.columns["loss"], samples.state["present"]
        counted = present & loss.isfinite()
        mean = torch.where(counted, loss, 0.0).sum(dtype=torch.float64) / counted.sum()
        is_hard = (present & ~(loss < mean)) | ~loss.isfinite()
        mask = is_hard | (draw.uniform(samples.everyone()) < keep)
        weights = moment.epoch / samples.state["times"].clamp(1, max(1, moment.epoch))
        return Chosen.of(mask, weights=weights)
