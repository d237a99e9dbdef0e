"""Progressive data dropout: only samples that are not yet known are trained on."""

from __future__ import annotations

import math

import torch

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, policies

__all__ = ["ProgressiveDropout"]

MODES = ("difficulty", "matched", "decay")


@policies.register("pdd", source="arXiv 2505.22342; bazyagami/LearningWithRevision")
class ProgressiveDropout(Policy):
    """Trains on samples whose target has a probability below ``tau``, or on as many at random.

    ``mode="difficulty"`` takes those, "matched" as many at random, and "decay" gamma^epoch of all
    at random, which needs no scores. Epoch 0 and the last are full; where none is below, one random
    sample is kept. ``keep`` plays no part. The paper's tau is .3, its gamma .99.

    The paper looks at each batch just before it trains on a part of it; here all samples are scored
    by a forward pass in evaluation mode between two epochs, so that batches stay of one size. That
    pass counts as a forward pass, as the paper's does not.

    Raises:
        ValueError: for another mode, or numbers out of range.
    """

    def __init__(self, mode: str = "difficulty", tau: float = 0.3, gamma: float = 0.99) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
        for name, value in (("tau", tau), ("gamma", gamma)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}: expected a number in (0, 1], got {value}")
        self.mode, self.tau, self.gamma = mode, tau, gamma

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch in (0, moment.total_epochs - 1)

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        size, device = samples.size, samples.device
        if self.mode == "decay":
            return Chosen.everyone(
                samples, take=max(1, math.floor(self.gamma**moment.epoch * size))
            )
        order = draw.order(size, device)
        places = torch.arange(size, device=device)
        # The probability is exp(-loss); NaN is not known either.
        is_hard = ~((-samples.columns["loss"]).exp() >= self.tau)
        count = is_hard.sum().clamp_min(1)
        at_random = torch.zeros_like(is_hard).index_copy_(0, order, places < count)
        mask = (
            at_random if self.mode == "matched" else torch.where(is_hard.any(), is_hard, at_random)
        )
        return Chosen.of(mask, rescored=torch.ones_like(mask))
