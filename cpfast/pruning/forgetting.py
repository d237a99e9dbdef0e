"""Forgetting events: how often a sample that was classified correctly no longer is."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import Samples, policies
from cpfast.pruning.static import Static

__all__ = ["Forgetting"]


@policies.register("forgetting", source="arXiv 1812.05159; mtoneva/example_forgetting")
class Forgetting(Static):
    """Counts changes from correct to wrong over the first epochs, drops what is forgotten least.

    What was never classified correctly counts as forgotten most. The paper counts over a whole
    training, after which another one begins; the default of ``epochs`` is ours.

    Raises:
        ValueError: for numbers out of range.
    """

    columns = ("correct",)

    def __init__(self, epochs: int = 20, drop: str = "easiest") -> None:
        super().__init__(epochs, drop)

    def state(self, size: int, device: torch.device) -> dict[str, Tensor]:
        was = torch.zeros(size, dtype=torch.bool, device=device)
        return {"score": torch.full((size,), torch.inf, device=device), "was_correct": was}

    def add(self, samples: Samples, moment: Moment) -> None:
        score, was = samples.state["score"], samples.state["was_correct"]
        correct = samples.columns["correct"] > 0
        learned = correct & score.isinf()
        score.copy_(torch.where(learned, 0.0, score + (was & ~correct)))
        was.copy_(correct)
