"""KAKURENBO: easy samples are hidden, and looked at once an epoch."""

from __future__ import annotations

import math

import torch

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, ascending, policies

__all__ = ["Kakurenbo"]


@policies.register("kakurenbo", source="arXiv 2310.10102; TruongThaoNguyen/kakurenbo")
class Kakurenbo(Policy):
    """Hides the easiest samples that are classified with confidence, and raises the learning rate.

    The floor(F x N) samples of the lowest last losses are candidates, with F = 1 - keep times 1,
    .8, .6, .4 from 0, 30, 60 and 80 % of the training on. Those of them that are classified
    correctly with a probability of ``confidence`` or more are hidden: no step trains on them, a
    forward pass scores them again after the epoch. Nothing is hidden in epoch 0. The learning rate
    is multiplied by 1 / (1 - share hidden).

    The paper's F is .3, keep .7. The probability is that of the target, exp(-loss): losses must be
    cross-entropies without label smoothing. Hidden samples are scored in evaluation mode (the
    released code's training mode moves BatchNorm's statistics).

    Raises:
        ValueError: for a confidence that is no probability.
    """

    columns = ("loss", "correct")
    keep = 0.7

    def __init__(self, confidence: float = 0.7) -> None:
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence: expected a probability, got {confidence}")
        self.confidence = confidence

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch == 0

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        decay = 1 - 0.2 * sum(moment.fraction >= begin for begin in (0.3, 0.6, 0.8))
        candidates = math.floor((1 - keep) * decay * samples.size)
        loss, correct = samples.columns["loss"], samples.columns["correct"]
        lowest = ascending(loss)[:candidates]
        hidden = torch.zeros(samples.size, dtype=torch.bool, device=samples.device)
        is_easy = (correct[lowest] > 0) & ((-loss[lowest]).exp() >= self.confidence)
        hidden[lowest] = is_easy
        return Chosen.of(~hidden, rescored=hidden)

    def lr(self, share: float, moment: Moment) -> float:
        return 1 / share if share > 0 else 1.0
