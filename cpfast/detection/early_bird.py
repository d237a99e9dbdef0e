"""Pruning by batch normalisation's scales keeps choosing the same channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["EarlyBird"]


@criteria.register("early_bird", source="arXiv 1909.11957; RICE-EIC/Early-Bird-Tickets:main.py")
class EarlyBird(Criterion):
    """The channels that pruning by batch normalisation's scales leaves hardly change any more.

    After each epoch the smallest ``share`` of all scales is marked; the period has ended when the
    mask differs from each of those of the last four epochs in a tenth of the channels at most. The
    source also trains with an L1 penalty on the scales, which this does not add.

    Args:
        share: of the channels that are marked. The source tries .3, .5 and .7; .5 is our choice.
        distance: the largest share of channels that may differ.
        keep: epochs that are compared, the last included.

    Raises:
        ValueError: for numbers out of range. A model without batch normalisation is refused by the
            probe, before anything is trained.
    """

    needs = ("scales",)

    def __init__(self, share: float = 0.5, distance: float = 0.1, keep: int = 5) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share: expected a share in (0, 1), got {share}")
        if not 0 <= distance <= 1:
            raise ValueError(f"distance: expected a share in [0, 1], got {distance}")
        if keep < 2:
            raise ValueError(f"keep: expected at least 2 epochs, got {keep}")
        self.share = share
        self.distance = distance
        self.earliest = keep

    def measure(self, probe: Probe) -> Tensor:
        return probe.mask_distances(self.share, self.earliest - 1)

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        """The largest of the distances; None while one is missing."""
        values = history[-1].values
        return max(values) if all(value >= 0 for value in values) else None

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        largest = self.statistic(history, moment)
        if largest is None or largest > self.distance:
            return None
        return (
            f"early_bird: masks of the last {self.earliest} epochs differ from the newest in at "
            f"most {largest:.3f} <= {self.distance:g} of the channels"
        )
