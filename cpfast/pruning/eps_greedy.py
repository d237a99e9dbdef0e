"""Epsilon-greedy: samples of high loss, and a few at random."""

from __future__ import annotations

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Samples, policies
from cpfast.pruning.ucb import Ucb, keep_highest

__all__ = ["EpsGreedy"]


@policies.register("eps_greedy", source="arXiv 2111.12621")
class EpsGreedy(Ucb):
    """Keeps int(keep x N) samples: int(eps x that) at random, the others of the highest mean loss.

    The mean is exponential, with the rate a: mu <- (1-a) mu + a l. The selection is made anew every
    ``every`` epochs; epochs before the first are full. The defaults of a, eps and every are ours.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, rate: float = 0.8, eps: float = 0.1, every: int = 1) -> None:
        if not 0 <= eps <= 1:
            raise ValueError(f"eps: expected a share in [0, 1], got {eps}")
        super().__init__(rate, 0.0, every)
        self.eps = eps

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        kept = max(1, int(keep * samples.size))
        own = draw._replace(epoch=moment.epoch // self.every)
        return keep_highest(samples, samples.state["score"], int(self.eps * kept), kept, own)
