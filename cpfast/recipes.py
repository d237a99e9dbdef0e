"""What a training spends in each epoch, before and after the critical learning period's end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["METHODS", "Phase", "Recipe"]

METHODS = ("full", "detector", "prune", "detector+prune")
_PRUNE = ("never", "always", "after")


class Phase(NamedTuple):
    """What one epoch spends."""

    repeats: int
    """How many augmented passes over the data."""
    prune: bool
    """Whether the passes may leave samples out."""


@dataclass(frozen=True)
class Recipe:
    """A plan for a training of ``total_epochs`` epochs. It has no state: nothing needs saving.

    Args:
        total_epochs: T.
        repeats: augmented passes over the data in an epoch; the paper's k is 3.
        repeats_after: passes in an epoch once the period has ended.
        prune: ``"never"``, ``"always"``, or ``"after"`` the period has ended.
        keep: share of the below-mean samples that pruning keeps.
        anneal: from epoch cp + ceil((T - cp) * anneal) on, the full recipe resumes; None: never.

    Raises:
        ValueError: for numbers out of range.

    Source: arXiv 2506.15954 (there ``anneal`` is one of .5 to .99).
    """

    total_epochs: int
    repeats: int = 3
    repeats_after: int = 1
    prune: str = "never"
    keep: float = 0.5
    anneal: float | None = None

    def __post_init__(self) -> None:
        for name in ("total_epochs", "repeats", "repeats_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.prune not in _PRUNE:
            raise ValueError(f"prune: expected one of {_PRUNE}, got {self.prune!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a share in (0, 1], got {self.keep}")
        if self.anneal is not None and not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal: expected a fraction in [0, 1] or None, got {self.anneal}")

    @classmethod
    def from_method(
        cls,
        method: str,
        total_epochs: int,
        *,
        repeats: int = 3,
        keep: float = 0.5,
        anneal: float | None = None,
    ) -> Recipe:
        """The recipe of a name in :data:`METHODS`.

        ``full`` repeats throughout; ``detector`` repeats until the period has ended; ``prune``
        repeats throughout on pruned data; ``detector+prune`` stops repeating and starts pruning
        when the period has ended.
        """
        if method not in METHODS:
            raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
        return cls(
            total_epochs,
            repeats=repeats,
            repeats_after=1 if "detector" in method else repeats,
            prune={"prune": "always", "detector+prune": "after"}.get(method, "never"),
            keep=keep,
            anneal=anneal,
        )

    @property
    def uses_detector(self) -> bool:
        """Whether anything changes when the period ends."""
        return self.repeats != self.repeats_after or self.prune == "after"

    def phase(self, epoch: int, end_epoch: int | None = None) -> Phase:
        """What epoch ``epoch`` (from 0) spends, where the period ended after ``end_epoch`` epochs.

        ``end_epoch`` counts completed epochs, as ``CriticalPeriodDetector.end_epoch`` does, and is
        None before the end.
        """
        if not 0 <= epoch < self.total_epochs:
            raise ValueError(f"epoch: expected one of 0..{self.total_epochs - 1}, got {epoch}")
        if end_epoch is None or epoch < end_epoch:
            return Phase(self.repeats, self.prune == "always")
        if self.anneal is not None:
            remaining = self.total_epochs - end_epoch
            if epoch >= end_epoch + math.ceil(remaining * self.anneal):
                return Phase(self.repeats, False)
        return Phase(self.repeats_after, self.prune != "never")
