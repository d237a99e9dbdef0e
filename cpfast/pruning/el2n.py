"""EL2N: the norm of the error early in training."""

from __future__ import annotations

from cpfast.moment import Moment
from cpfast.pruning.policy import Samples, policies
from cpfast.pruning.static import Static

__all__ = ["El2n"]


@policies.register("el2n", source="arXiv 2107.07075; mansheej/data_diet")
class El2n(Static):
    """Scores by the mean norm of softmax minus one-hot over the first epochs, drops the easiest.

    The paper averages over ten networks at an epoch between 10 and 20; one network and the mean
    over its first ``epochs`` stand for them here.

    Raises:
        ValueError: for numbers out of range.
    """

    columns = ("el2n",)

    def __init__(self, epochs: int = 10, drop: str = "easiest") -> None:
        super().__init__(epochs, drop)

    def add(self, samples: Samples, moment: Moment) -> None:
        samples.state["score"].add_(samples.columns["el2n"])
