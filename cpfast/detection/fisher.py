"""The Fisher information has passed its peak."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["Fisher"]


@criteria.register("fisher", source="arXiv 1711.08856; tfjgeorge/nngeometry:metrics.py")
class Fisher(Criterion):
    """The trace of the Fisher information has fallen below half of its highest value so far.

    The paper shows that it rises and falls over the critical period, and gives no rule: that of a
    share of the peak is ours. The trace is estimated without bias from one backward pass a batch,
    with labels that the model itself draws, in evaluation mode; with the true labels it would be
    the empirical Fisher, which is another thing.

    Args:
        fall: the share of the peak; .5 is our choice.
        batches: for the estimate; 8 is our choice. Few make it noisy.

    Raises:
        ValueError: for numbers out of range.
    """

    needs = ("batches",)
    earliest = 2

    def __init__(self, fall: float = 0.5, batches: int = 8) -> None:
        if not 0 < fall < 1:
            raise ValueError(f"fall: expected a share in (0, 1), got {fall}")
        if batches < 1:
            raise ValueError(f"batches: expected at least 1, got {batches}")
        self.fall = fall
        self.batches = batches

    def measure(self, probe: Probe) -> Tensor:
        return probe.fisher_trace(self.batches).unsqueeze(0)

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        """The share of the peak."""
        peak = max(m.values[0] for m in history)
        return history[-1].values[0] / peak if peak > 0 else None

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        share = self.statistic(history, moment)
        if share is None or share > self.fall:
            return None
        trace = history[-1].values[0]
        return f"fisher: the trace, {trace:.3g}, is {share:.3f} <= {self.fall:g} of its peak"
