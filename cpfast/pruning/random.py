"""RS2: a random subset, fresh in each epoch."""

from __future__ import annotations

import math

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, policies

__all__ = ["RandomSubset"]


@policies.register("random", source="arXiv 2305.18424")
class RandomSubset(Policy):
    """floor(keep x N) fresh random samples a pass, at least one, each of weight 1."""

    columns = ()

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        return Chosen.everyone(samples, take=max(1, math.floor(keep * samples.size)))
