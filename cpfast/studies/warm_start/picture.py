"""The picture of warm starts: how accuracy goes, and where it ends by what is left of weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.pictures import caption, series
from cpfast.studies.statistics import estimate
from cpfast.studies.store import Results, accuracies
from cpfast.train import report
from cpfast.train.plots.style import (
    BLUE,
    GREEN,
    GREY,
    STYLE,
    VERMILION,
    grid,
    load_pyplot,
    save,
)

if TYPE_CHECKING:
    from cpfast.studies.warm_start.study import WarmStart

STYLES = {"first": (GREY, "o"), "scratch": (VERMILION, "D"), "warm": (BLUE, "s")}
SHRUNK = (GREEN, "^")


def draw(study: WarmStart, results: Results, path: Path) -> None:
    """Accuracy against epochs, and at the end against the shrinking: a PNG at `path`."""
    pyplot = load_pyplot()
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
        _draw_curves(left, study, results)
        _draw_ends(right, study, results)
        for axes in (left, right):
            grid(axes)
            axes.set_ylabel("test accuracy, %")
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: {100 * study.share:g} % of "
            f"the data first, then all; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)


def _draw_curves(axes: Any, study: WarmStart, results: Results) -> None:
    total, every = study.config.epochs, study.config.eval_every
    middle = study.shrinks[len(study.shrinks) // 2 - 1 :][:1]
    shown = [("first", 0, "first part of the data"), ("scratch", total, "all, from scratch"),
             ("warm", total, "all, warm start")]  # fmt: skip
    shown += [(f"shrink{s:g}", total, f"all, shrunk to {s:g} and perturbed") for s in middle]
    for arm, begin, label in shown:
        colour, marker = STYLES.get(arm, SHRUNK)
        runs = [e for e in results["runs"] if e["arm"] == arm and e["diverged"] is None]
        points = zip(*([100 * accuracy for _, accuracy in e["curve"]] for e in runs), strict=True)
        means = [estimate(point) for point in points]
        places = [begin + min(total, (i + 1) * every) for i in range(len(means))]
        series(axes, places, means, results, colour=colour, marker=marker, label=label)
    axes.axvline(total, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("epoch; the rest of the data comes at the dotted line")
    axes.set_title("During training, by running statistics")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _draw_ends(axes: Any, study: WarmStart, results: Results) -> None:
    shrunk = [estimate(accuracies(results, arm=f"shrink{s:g}").values()) for s in study.shrinks]
    colour, marker = SHRUNK
    series(axes, study.shrinks, shrunk, results, colour=colour, marker=marker,
           label=f"with {study.noise:g} of fresh weights")  # fmt: skip
    for arm, place, label in (("scratch", 0.0, "from scratch"), ("warm", 1.0, "warm start")):
        colour, marker = STYLES[arm]
        end = estimate(accuracies(results, arm=arm).values())
        series(axes, [place], [end], results, colour=colour, marker=marker, label=label)
        if end is not None:
            axes.axhline(end.mean, color=colour, linewidth=1, linestyle=":")
    axes.set_xlabel("share of the trained weights that is left")
    axes.set_title("After the last epoch, by statistics measured anew")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
