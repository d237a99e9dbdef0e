"""What is done with the training data in some epochs, and what it is held against."""

from __future__ import annotations

from typing import Any, NamedTuple

# The same throughout.
ORDINARY, MIXUP = "ordinary", "mixup"
# In a period, and what each is in all other epochs.
PAUSE, BOOST, REMOVAL, RANDOM = "pause", "boost", "removal", "random"
OTHERWISE = {PAUSE: MIXUP, BOOST: MIXUP, REMOVAL: ORDINARY, RANDOM: ORDINARY}
HELD_AGAINST = {
    ORDINARY: (), MIXUP: (ORDINARY,), PAUSE: (MIXUP, ORDINARY), BOOST: (MIXUP, ORDINARY),
    REMOVAL: (ORDINARY, RANDOM), RANDOM: (ORDINARY,),
}  # fmt: skip
ARMS = (ORDINARY, MIXUP, *OTHERWISE)
STRATEGIES = (PAUSE, BOOST, REMOVAL)  # the paper's; random is the control of removal

# Which epochs of the period: in the first of all nothing is known yet by which to remove.
FIRST = {PAUSE: 0, BOOST: 0, REMOVAL: 1, RANDOM: 1}


class Run(NamedTuple):
    """An arm in epochs `begin` to `end`; (0, 0) of those that are the same throughout."""

    arm: str
    begin: int = 0
    end: int = 0

    def key(self, seed: int) -> dict[str, Any]:
        """What identifies its entry."""
        return {**self._asdict(), "seed": seed}

    @property
    def is_late(self) -> bool:
        """Whether its epochs are later than the period."""
        return self.begin > FIRST.get(self.arm, 0)

    @property
    def name(self) -> str:
        return self.arm if self.arm not in FIRST else f"{self.arm}-{self.begin}-{self.end}"


def early(arm: str, length: int) -> Run:
    """In the period that begins with the training."""
    return Run(arm, FIRST[arm], length)


def late(arm: str, length: int, total: int) -> Run:
    """In as many epochs, up to half of the training: by then all is learned that is learned early,
    and the rate has not fallen yet, at which little would matter."""
    end = total // 2
    return Run(arm, end - length + FIRST[arm], end)
