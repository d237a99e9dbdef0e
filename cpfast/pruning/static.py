"""What the policies share that score the samples early, and then leave the same ones out."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, ascending, descending

__all__ = ["Static"]

DROPS = ("easiest", "hardest")


class Static(Policy):
    """Full epochs while it scores; then the share ``keep`` by score, the same in all epochs.

    Its ``score`` is higher for what is harder.

    Args:
        epochs: how many score.
        drop: "easiest" or "hardest": which are left out.
    """

    def __init__(self, epochs: int, drop: str) -> None:
        if epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {epochs}")
        if drop not in DROPS:
            raise ValueError(f"drop: expected one of {DROPS}, got {drop!r}")
        self.epochs, self.drop = epochs, drop

    def state(self, size: int, device: torch.device) -> dict[str, Tensor]:
        return {"score": torch.zeros(size, device=device)}

    def update(self, samples: Samples, moment: Moment) -> None:
        if moment.epoch < self.epochs:
            self.add(samples, moment)

    def add(self, samples: Samples, moment: Moment) -> None:
        """What an epoch adds to ``samples.state["score"]``, in place."""
        raise NotImplementedError

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch < self.epochs

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        by = descending if self.drop == "easiest" else ascending
        order = by(samples.state["score"])
        return Chosen.of(samples.mask(order[: max(1, int(keep * samples.size))]))
