"""What a deficit has left: accuracy after clean training again, less that of clean training alone.

Both have as many epochs in all, and the same seeds. In points; negative where it has cost some.
"""

from __future__ import annotations

from cpfast.studies.statistics import Estimate, difference, estimate
from cpfast.studies.store import Results, accuracies

CLEAN = "none"
Span = tuple[int, int]  # the epochs at which it begins and ends


def accuracy(results: Results, deficit: str, span: Span) -> Estimate | None:
    return estimate(accuracies(results, deficit=deficit, begin=span[0], end=span[1]).values())


def clean(results: Results, end: int) -> Estimate | None:
    return accuracy(results, CLEAN, (end, end))


def damages(results: Results, deficit: str, span: Span) -> dict[int, float]:
    """By seed."""
    return difference(
        accuracies(results, deficit=deficit, begin=span[0], end=span[1]),
        accuracies(results, deficit=CLEAN, begin=span[1], end=span[1]),
    )


def damage(results: Results, deficit: str, span: Span) -> Estimate | None:
    return estimate(damages(results, deficit, span).values())


def change(results: Results, deficit: str, first: Span, last: Span) -> Estimate | None:
    """The damage of `last` less that of `first`."""
    one, other = (damages(results, deficit, span) for span in (first, last))
    return estimate(difference(other, one).values())
