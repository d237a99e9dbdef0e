"""AUM: samples whose margin stays low are probably labelled wrongly."""

from __future__ import annotations

from cpfast.moment import Moment
from cpfast.pruning.policy import Samples, policies
from cpfast.pruning.static import Static

__all__ = ["Aum"]


@policies.register("aum", source="arXiv 2001.10528; asappresearch/aum")
class Aum(Static):
    """Scores by the mean margin over the first epochs, and drops the lowest.

    The margin is the logit of the target less the largest other one. Where the paper finds its
    threshold by samples of a class that there is not, the share is ``keep`` here; the default of
    ``epochs`` is ours.

    Raises:
        ValueError: for numbers out of range.
    """

    columns = ("margin",)
    keep = 0.7

    def __init__(self, epochs: int = 20, drop: str = "hardest") -> None:
        super().__init__(epochs, drop)

    def add(self, samples: Samples, moment: Moment) -> None:
        samples.state["score"].sub_(samples.columns["margin"])
