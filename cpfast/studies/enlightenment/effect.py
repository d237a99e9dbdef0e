"""What a strategy is worth, in points, and when the outputs get ordered, in epochs; by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def when(results: Results, arm: str, milestone: str) -> dict[int, float]:
    """The epoch of one of `Milestones`, where it is reached."""
    found = {
        e["seed"]: getattr(milestones(e["trace"]), milestone)
        for e in results["runs"] if e["arm"] == arm and e["trace"] is not None
    }  # fmt: skip
    return {seed: epoch for seed, epoch in found.items() if epoch is not None}


def along(results: Results, arm: str, column: str) -> list[Estimate]:
    """A column of the traces, over seeds."""
    columns = [
        e["trace"][column] for e in results["runs"] if e["arm"] == arm and e["trace"] is not None
    ]
    found = [estimate(values) for values in zip(*columns, strict=False)]
    return [value for value in found if value is not None]


def period(study: Enlightenment, results: Results, arm: str) -> Run:
    """The shortest early period in which accuracy got half way from chance, with every seed; the
    longest, if it did not."""
    reached = when(results, ORDINARY, "half_way").values()
    runs = [early(arm, length) for length in study.lengths_of(arm)]
    return next((run for run in runs if all(r <= run.end for r in reached) and reached), runs[-1])
