"""Accuracy against cost: the control's curve with its band, and the methods beside it; of one
budget, how far each method stands from the control."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from cpfast.studies.frontier import curve
from cpfast.studies.frontier.methods import CONTROL
from cpfast.studies.frontier.table import NAMES
from cpfast.studies.pictures import SERIES, band, caption
from cpfast.studies.store import Results
from cpfast.train import report
from cpfast.train.plots.style import BLACK, BLUE, STYLE, grid, load_pyplot, save

if TYPE_CHECKING:
    from cpfast.studies.frontier.study import Frontier

HOLLOW = len(SERIES)  # series after which markers have no filling


def draw(study: Frontier, results: Results, path: Path) -> None:
    """A PNG at `path`."""
    if len(study.budgets) == 1:
        _draw_distances(study, results, path)
    else:
        _draw_curves(study, results, path)


def _draw_distances(study: Frontier, results: Results, path: Path) -> None:
    """A row a method, the best above."""
    pyplot = load_pyplot()
    gains = [
        (one.gain.mean, one.gain.half or 0.0, one.arm)
        for one in curve.distances(study, results) if one.gain is not None
    ]  # fmt: skip
    gains.sort()
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            figsize=(7, 1.8 + 0.24 * max(4, len(gains))), layout="constrained"
        )
        rows = range(len(gains))
        axes.axvline(0, color=BLACK, linewidth=1.5)
        axes.errorbar(
            [mean for mean, _, _ in gains], rows, xerr=[half for _, half, _ in gains], color=BLUE,
            marker="o", markersize=4, linestyle="none", capsize=2,
        )  # fmt: skip
        axes.set_yticks(rows, [arm for _, _, arm in gains])
        axes.set_ylim(-0.8, max(0, len(gains) - 1) + 0.8)
        currency = NAMES[curve.currency_of(results)]
        axes.set_xlabel(f"points above the tuned control at equal {currency}")
        grid(axes)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: {study.budgets[0]} % of "
            f"{study.config.epochs} epochs; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)


def _draw_curves(study: Frontier, results: Results, path: Path) -> None:
    pyplot = load_pyplot()
    currency, found = curve.currency_of(results), curve.distances(study, results)
    full = [
        value
        for one in found
        if one.arm == CONTROL and one.budget == max(study.budgets)
        for value in curve.costs_of(one.entries, currency).values()
    ]
    unit = statistics.fmean(full) / max(study.budgets) if full else 1.0
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(12, 5.6), layout="constrained", width_ratios=(1, 1)
        )
        places = {
            (one.arm, one.budget): statistics.fmean(
                curve.costs_of(one.entries, currency).values()
            ) / unit
            for one in found
        }  # fmt: skip
        ours = sorted(
            (places[one.arm, one.budget], one.accuracy)
            for one in found if one.arm == CONTROL and one.accuracy is not None
        )  # fmt: skip
        band(left, [x for x, _ in ours], [a for _, a in ours], BLACK, "control, tuned")
        right.axhline(0, color=BLACK, linewidth=1.5)
        for number, arm in enumerate(study.methods):
            colour, marker = SERIES[number % len(SERIES)]
            style = {
                "color": colour, "marker": marker, "markersize": 5, "linewidth": 1.0,
                "linestyle": "-" if number < HOLLOW else "--", "capsize": 2,
                "markerfacecolor": colour if number < HOLLOW else "white",
            }  # fmt: skip
            of_arm = sorted((places[arm, one.budget], one.budget, one)
                            for one in found if one.arm == arm)  # fmt: skip
            for axes, name in ((left, "accuracy"), (right, "gain")):
                points = [(x, getattr(one, name)) for x, _, one in of_arm]
                points = [(x, value) for x, value in points if value is not None]
                axes.errorbar(
                    [x for x, _ in points], [v.mean for _, v in points],
                    yerr=[v.half or 0.0 for _, v in points] if name == "gain" else None,
                    label=arm if axes is left else None, **style,
                )  # fmt: skip
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(study.budgets, [str(b) for b in study.budgets])
            axes.minorticks_off()
            axes.set_xlabel(f"cost in {NAMES[currency]}, % of {study.config.epochs} full epochs")
            grid(axes)
        left.set_ylabel("test accuracy, %")
        right.set_ylabel("points above the control at equal cost")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)
