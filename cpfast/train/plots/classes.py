"""Pictures of a model's predictions: which classes are taken for which, and how sure it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cpfast.train.errors import require
from cpfast.train.plots.style import BLUE, GREY, STYLE, VERMILION, grid, load_pyplot, save

MOST_NUMBERS = 20  # classes of which each cell has its number written in it
MOST_NAMES = 120  # beyond that only some classes have their names beside the axes
LARGEST = 14.0  # inches a side
LONGEST_NAME = 18


def draw_confusion(result: dict[str, Any], path: Path, title: str) -> None:
    """The confusion matrix, a row for each true class, in shares of it: a PNG at `path`."""
    pyplot = load_pyplot()
    colors = require("matplotlib.colors", "a picture")
    counts = np.array(result["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    number = len(counts)
    side = min(LARGEST, max(4.5, 2.5 + 0.42 * number))
    with pyplot.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure, axes = pyplot.subplots(figsize=(side + 1, side), layout="constrained")
        # Of a square root the colours tell few mistakes from none.
        image = axes.imshow(
            shares, cmap="Blues", norm=colors.PowerNorm(0.5, 0, 1), interpolation="nearest"
        )
        if number <= MOST_NUMBERS:
            _write_numbers(axes, counts, shares)
        _name_classes(axes, [one["name"] for one in result["classes"]])
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_title(f"{title}\n{100 * result['accuracy']:.2f} % of {result['samples']:,} right")
        bar = figure.colorbar(
            image, ax=axes, shrink=0.8, pad=0.02, label="share of the true class's samples"
        )
        bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], labels=[
            "0 %", "1 %", "5 %", "10 %", "25 %", "50 %", "100 %"
        ])  # fmt: skip
        save(figure, path)
        pyplot.close(figure)


def draw_calibration(result: dict[str, Any], path: Path, title: str) -> None:
    """A reliability diagram (1706.04599, figure 1): accuracy by confidence, above how many samples
    are of each: a PNG at `path`."""
    pyplot = load_pyplot()
    bins = result["calibration"]
    width = 1 / len(bins)
    used = [one for one in bins if one["samples"]]
    middles = [one["limit"] - width / 2 for one in used]
    with pyplot.rc_context(STYLE):
        figure, (top, bottom) = pyplot.subplots(
            2, 1, figsize=(5.5, 6.5), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        top.bar(
            middles, [one["accuracy"] for one in used], width,
            color=BLUE, edgecolor="white", linewidth=0.8, label="accuracy",
        )  # fmt: skip
        for number, one in enumerate(used):
            top.plot(
                [one["limit"] - width, one["limit"]], [one["confidence"]] * 2,
                color=VERMILION, linewidth=2, label=None if number else "mean confidence",
            )  # fmt: skip
        top.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="calibrated")
        top.set_ylabel("share that is right")
        top.set_xlim(0, 1)
        top.set_ylim(0, 1)
        top.legend(loc="upper left")
        error = 100 * result["calibration_error"]
        top.set_title(f"{title}\nexpected calibration error {error:.2f} %")
        bottom.bar(middles, [one["samples"] for one in used], width, color=GREY,
                   edgecolor="white", linewidth=0.8)  # fmt: skip
        bottom.set_yscale("symlog", linthresh=1)
        bottom.set_ylabel("samples")
        bottom.set_xlabel("confidence: probability of the predicted class")
        for axes in (top, bottom):
            grid(axes)
        save(figure, path)
        pyplot.close(figure)


def _write_numbers(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = shares[row, column] > 0.4
            axes.text(
                column, row, f"{count:,}", ha="center", va="center", fontsize=8,
                color="white" if dark else "0.15",
            )  # fmt: skip


def _name_classes(axes: Any, names: list[str]) -> None:
    every = -(-len(names) // MOST_NAMES)
    places = range(0, len(names), every)
    shown = [_shortened(names[place]) for place in places]
    size = min(9.0, 72 * 0.75 * LARGEST / len(places) * 0.8)
    is_long = max(map(len, shown)) > 3
    axes.set_xticks(places, shown, fontsize=size)
    if is_long:
        axes.tick_params("x", rotation=90 if len(names) > MOST_NUMBERS else 35)
    if is_long and len(names) <= MOST_NUMBERS:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(places, shown, fontsize=size)
    axes.tick_params(length=2)


def _shortened(name: str) -> str:
    """Without what matplotlib takes for a formula."""
    short = (
        name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
    return short.replace("$", r"\$")
