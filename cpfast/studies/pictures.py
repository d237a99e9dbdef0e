"""What the pictures of studies share: a mean over seeds with its interval, along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cpfast.studies.statistics import Estimate
from cpfast.studies.store import Results, begun_seeds
from cpfast.train.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SEEDS_FOR_INTERVAL,
    SKY,
    VERMILION,
    interval_text,
    seeds_text,
)

# Colours and markers of what is compared, in turn.
SERIES = (
    (VERMILION, "D"), (BLUE, "s"), (GREEN, "^"), (PURPLE, "v"), (ORANGE, "P"), (SKY, "X")
)  # fmt: skip


def caption(results: Results) -> str:
    """How many seeds the means are over, and what the bars are."""
    count = len(begun_seeds(results))
    return seeds_text(count) + (interval_text(count, False) if count >= SEEDS_FOR_INTERVAL else "")


def dodged(places: Sequence[float], number: int, count: int) -> list[float]:
    """Moved aside a little, so that the bars of `count` series stand beside each other."""
    width = 0.012 * ((max(places, default=0) - min(places, default=0)) or 1)
    return [place + width * (number - (count - 1) / 2) for place in places]


def mark(axes: Any, places: Sequence[float]) -> None:
    """Ticks where something was measured; around a single such place there is room."""
    axes.set_xticks(sorted(set(places)))
    if len(set(places)) == 1:
        axes.margins(x=1)


def series(
    axes: Any,
    places: Sequence[float],
    estimates: Sequence[Estimate | None],
    results: Results,
    *,
    colour: str,
    marker: str,
    linestyle: str = "-",
    hollow: bool = False,
    label: str | None = None,
) -> None:
    """A line through the means, with intervals from three seeds on; without what is missing.

    Args:
        hollow: whether its markers have no filling.
    """
    there = [(x, e) for x, e in zip(places, estimates, strict=True) if e is not None]
    if not there:
        return
    bars = len(begun_seeds(results)) >= SEEDS_FOR_INTERVAL
    axes.errorbar(
        [x for x, _ in there], [e.mean for _, e in there],
        yerr=[e.half or 0.0 for _, e in there] if bars else None,
        color=colour, marker=marker, markersize=5, linestyle=linestyle, linewidth=1.4, capsize=3,
        markerfacecolor="white" if hollow else colour, label=label,
    )  # fmt: skip


def band(
    axes: Any,
    places: Sequence[float],
    values: Sequence[Estimate],
    colour: str,
    label: str | None = None,
    linestyle: str = "-",
) -> None:
    """A line for the means, within their intervals."""
    if not values:
        return
    if all(value.half is not None for value in values):
        axes.fill_between(
            places, [v.low for v in values], [v.mean + (v.half or 0.0) for v in values],
            color=colour, alpha=0.2, linewidth=0,
        )  # fmt: skip
    axes.plot(
        places, [v.mean for v in values], color=colour, linewidth=1.5, linestyle=linestyle,
        label=label,
    )  # fmt: skip
