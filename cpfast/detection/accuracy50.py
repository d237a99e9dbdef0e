"""Half of the training samples are classified correctly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cpfast.detection.criterion import Criterion, Measured, Probe, criteria
from cpfast.moment import Moment

__all__ = ["Accuracy50"]


@criteria.register("accuracy50", source='arXiv 2504.01737, "enlightenment"')
class Accuracy50(Criterion):
    """The training accuracy of an epoch, on what it trained on, reaches 50 %.

    Args:
        chance: the accuracy of guessing, such as 1 / C: then half way from it to 100 % is the
            threshold. The paper's 50 % is chance itself for two classes; the option is ours.
    """

    needs = ("accuracy",)

    def __init__(self, chance: float = 0.0) -> None:
        if not 0 <= chance < 1:
            raise ValueError(f"chance: expected an accuracy in [0, 1), got {chance}")
        self.threshold = (1 + chance) / 2

    def measure(self, probe: Probe) -> Tensor:
        return probe.accuracy().unsqueeze(0)

    def statistic(self, history: Sequence[Measured], moment: Moment) -> float | None:
        return history[-1].values[0]

    def judge(self, history: Sequence[Measured], moment: Moment) -> str | None:
        accuracy, least = history[-1].values[0], self.threshold
        return f"accuracy50: {accuracy:.3f} >= {least:g}" if accuracy >= least else None
