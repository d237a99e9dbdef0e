"""RS2: a random subset in each epoch, fresh or without replacement across epochs."""

from __future__ import annotations

import math

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, policies

__all__ = ["RandomSubset"]

MODES = ("fresh", "split")


@policies.register("random", source="arXiv 2305.18424")
class RandomSubset(Policy):
    """floor(keep x N) random samples a pass, at least one, each of weight 1.

    With ``mode="fresh"`` each pass draws anew; with ``"split"`` as many successive epochs as find
    room share one order of all samples, so that none comes twice among them.

    Raises:
        ValueError: for another mode.
    """

    columns = ()

    def __init__(self, mode: str = "fresh") -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
        self.mode = mode

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        size = max(1, math.floor(keep * samples.size))
        if self.mode == "fresh":
            return Chosen.everyone(samples, take=size)
        turn, place = divmod(moment.epoch, samples.size // size)
        order = draw._replace(epoch=turn).order(samples.size, samples.device)
        return Chosen.of(samples.mask(order[place * size : (place + 1) * size]))
