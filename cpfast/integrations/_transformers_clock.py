"""Where a training by the Trainer of transformers stands, whose epochs change their length."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass
class Clock:
    """Where the training stands. The Trainer computes all of it from the length that its loader
    has at the start, and epochs change theirs."""

    nominal: float
    """Updates in an epoch, as the schedule of the learning rate counts them."""
    total: float
    """Of the whole training, so counted."""
    epochs: float
    """Asked for."""
    exact: bool
    """Whether the number of updates was asked for, and not that of epochs."""
    epoch: int = 0
    since: int = 0
    """Updates done when this epoch, or what is left of it after a resume, began."""
    updates: int = 1
    """That it takes from there on."""
    begun: float = 0.0
    """Where the schedule stood then."""
    ended: bool = False
    """Whether the epoch has been measured and judged."""

    def begin(self, done: int, updates: int) -> None:
        """An epoch of ``updates``, the ``done`` before it."""
        self.since, self.begun, self.ended = done, self.epoch * self.nominal, False
        self.updates = self._of_last(updates)

    def again(self, done: int) -> None:
        """This epoch from its first batch on, in spite of what was trained of it."""
        self.begun, self.since = self.place(done), done

    def go_on(self, updates: int) -> None:
        """In the middle of this epoch."""
        self.updates = self._of_last(updates)

    def _of_last(self, updates: int) -> int:
        left = self.epochs - self.epoch
        return updates if self.exact or left >= 1 else math.ceil(left * updates)

    def estimate(self, updates: int) -> int:
        """Of all updates, where the epochs to come are as long as this one; in the last one, what
        they are."""
        return self.since + max(math.ceil((self.epochs - self.epoch) * updates), self.updates)

    def place(self, done: int) -> float:
        """In the schedule, after ``done`` updates: where it would stand by the share of the
        training that is done. Where no epoch changes its length, ``done`` to the bit."""
        end = min((self.epoch + 1) * self.nominal, self.total)
        place = self.begun + (done - self.since) * ((end - self.begun) / self.updates)
        if self.exact:  # that ends at these updates, or with the epochs
            place = max(place, float(done))
        return min(place, self.total)
