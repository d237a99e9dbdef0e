"""What regularisation in some epochs is worth, in points: against always, and against never."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cpfast.studies.statistics import Estimate, difference, estimate
from cpfast.studies.store import Results, accuracies

if TYPE_CHECKING:
    from cpfast.studies.window.study import RegularisationWindow, Span


def always(results: Results) -> dict[int, float]:
    """Accuracy in percent by seed."""
    return accuracies(results, regulariser="always")


def within(results: Results, name: str, span: Span) -> dict[int, float]:
    return accuracies(results, regulariser=name, begin=span[0], end=span[1])


def never(results: Results, name: str) -> dict[int, float]:
    return within(results, name, (0, 0))


def against(values: dict[int, float], others: dict[int, float]) -> Estimate | None:
    """Paired by seed."""
    return estimate(difference(values, others).values())


def along(results: Results, name: str, spans: Iterable[Span]) -> list[Estimate | None]:
    return [estimate(within(results, name, span).values()) for span in spans]


def middle(study: RegularisationWindow) -> int:
    """The switch that is nearest to half of the training."""
    return min(study.switches, key=lambda switch: abs(2 * switch - study.config.epochs))
