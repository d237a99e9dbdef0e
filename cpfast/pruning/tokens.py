"""Token selection: of each sequence, the tokens whose loss exceeds a reference's most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, TokenFilter, policies

__all__ = ["Tokens"]


@policies.register("tokens", source="arXiv 2404.07965")
class Tokens(Policy):
    """Trains on a share ``keep`` of each sequence's tokens, those of the largest excess loss.

    The excess loss is the current one less that of a reference model (``reference`` of the
    pruner); without one it is the current loss, which prefers what cannot be learned. Of n tokens
    that are not ignored round(keep x n) are trained on, at least one; of equal ones the first. Each
    sample is in every epoch, and is scored by all of its tokens.

    The paper selects among all tokens of a batch, which lets sequences crowd out each other; here
    it is within each sequence. It keeps 60 % (of 1.1 B parameters; 70 % of 7 B). The mean over the
    selected is not that over all, and nothing corrects that: it is meant.
    """

    keep = 0.6
    needs_tokens = True

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        return Chosen.everyone(samples)

    def token_filter(self, moment: Moment, keep: float) -> TokenFilter | None:
        return _ByExcess(keep)


@dataclass(frozen=True)
class _ByExcess:
    keep: float

    def most(self, length: int) -> int:
        return max(1, round(self.keep * length))

    def choose(self, losses: Tensor, counts: Tensor, reference: Tensor | None) -> Tensor:
        excess = losses if reference is None else losses - reference
        # NaN comes first, so that a training that has diverged does not go on in silence.
        order = excess.masked_fill(~counts, -torch.inf).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        ranks = torch.empty_like(order).scatter_(1, order, places)
        number = (self.keep * counts.sum(1, dtype=torch.float64)).round().clamp_min(1)
        return counts & (ranks < number[:, None])
