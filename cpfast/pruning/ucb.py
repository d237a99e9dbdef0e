"""Upper confidence bound: samples of high and of changing loss."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, descending, policies

__all__ = ["Ucb", "keep_highest", "running_loss"]


def running_loss(samples: Samples, rate: float) -> Tensor:
    """Of the samples that were trained on, moves ``state["mean"]`` towards the last loss, and
    ``state["variance"]`` towards the square of the difference from the mean before; returns which
    these are, [N] bool. The first loss is the mean, and the variance 0."""
    assert samples.trained is not None
    loss, mean, variance = samples.columns["loss"], samples.state["mean"], samples.state["variance"]
    known = samples.trained & loss.isfinite()
    is_first = known & mean.isinf()
    change = torch.where(known & ~is_first, loss - mean, 0.0)
    variance.copy_(torch.where(known, (1 - rate) * variance + rate * change.square(), variance))
    mean.copy_(torch.where(is_first, loss, mean + rate * change))
    return known


def keep_highest(samples: Samples, score: Tensor, drawn: int, kept: int, draw: Draw) -> Chosen:
    """Of ``kept`` samples all but ``drawn`` by the highest score, the others at random."""
    order = descending(score)
    rest = order[kept - drawn :]
    at = draw.order(len(rest), samples.device)[:drawn]
    return Chosen.of(samples.mask(torch.cat([order[: kept - drawn], rest[at]])))


@policies.register("ucb", source="arXiv 2111.12621")
class Ucb(Policy):
    """Keeps the int(keep x N) samples of the highest mean loss plus c times its variance.

    Both are exponential averages with the rate a: var <- (1-a) var + a (l - mu)^2, then
    mu <- (1-a) mu + a l. The selection is made anew every ``every`` epochs; epochs before the first
    are full. The paper leaves a, c and every open in what could be read of it: the defaults are
    ours.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, rate: float = 0.8, c: float = 1.0, every: int = 1) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"rate: expected a share in (0, 1], got {rate}")
        if not c >= 0:
            raise ValueError(f"c: expected 0 or more, got {c}")
        if every < 1:
            raise ValueError(f"every: expected at least 1 epoch, got {every}")
        self.rate, self.c, self.every = rate, c, every

    def state(self, size: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "mean": torch.full((size,), torch.inf, device=device),
            "variance": torch.zeros(size, device=device),
            "score": torch.full((size,), torch.inf, device=device),
        }

    def update(self, samples: Samples, moment: Moment) -> None:
        running_loss(samples, self.rate)
        if (moment.epoch + 1) % self.every == 0:
            state = samples.state
            state["score"].copy_(state["mean"] + self.c * state["variance"])

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch < self.every

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        kept = max(1, int(keep * samples.size))
        return keep_highest(samples, samples.state["score"], 0, kept, draw)
