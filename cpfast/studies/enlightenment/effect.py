"""What a strategy is worth, in points, and when the outputs get ordered, in epochs; by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpfast.studies.enlightenment.arms import HELD_AGAINST, ORDINARY, RANDOM, Run, early
from cpfast.studies.enlightenment.order import milestones
from cpfast.studies.statistics import Estimate, difference, estimate
from cpfast.studies.store import Results, accuracies

if TYPE_CHECKING:
    from cpfast.studies.enlightenment.study import Enlightenment


def accuracy(results: Results, run: Run) -> dict[int, float]:
    """In percent."""
    return accuracies(results, **run._asdict())


def against(results: Results, run: Run, other: Run) -> Estimate | None:
    """Accuracy less that of another run, paired by seed."""
    return estimate(difference(accuracy(results, run), accuracy(results, other)).values())


def controls(run: Run) -> list[Run]:
    """What it is held against; random leaves out as many in the same epochs."""
    arms = HELD_AGAINST[run.arm]
    return [run._replace(arm=arm) if arm == RANDOM else Run(arm) for arm in arms]


# --- the order ------------------------------------------------------------------------------


def traced(results: Results, arm: str) -> dict[int, Any]:
    """The traces."""
    runs = results["runs"]
    return {e["seed"]: e["trace"] for e in runs if e["arm"] == arm and e["trace"] is not None}


def when(results: Results, arm: str, milestone: str) -> dict[int, float]:
    """The epoch of one of `Milestones`, where it is reached."""
    found = {
        seed: getattr(milestones(trace), milestone)
        for seed, trace in traced(results, arm).items()
    }  # fmt: skip
    return {seed: epoch for seed, epoch in found.items() if epoch is not None}


def along(results: Results, arm: str, column: str) -> list[Estimate]:
    """A column of the traces, over seeds."""
    columns = [trace[column] for trace in traced(results, arm).values()]
    found = [estimate(values) for values in zip(*columns, strict=False)]
    return [value for value in found if value is not None]


def half_way(results: Results) -> dict[int, float] | None:
    """The epoch at which accuracy is half way from chance; None unless it gets there with every
    seed."""
    found = when(results, ORDINARY, "half_way")
    return found if found and len(found) == len(traced(results, ORDINARY)) else None


def period(study: Enlightenment, results: Results, arm: str) -> Run:
    """The shortest early period in which accuracy got half way from chance with every seed; the
    longest, if it did not."""
    reached = half_way(results)
    runs = [early(arm, length) for length in study.lengths_of(arm)]
    if reached is None:
        return runs[-1]
    return next((run for run in runs if run.end >= max(reached.values())), runs[-1])
