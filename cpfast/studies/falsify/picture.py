"""The picture of a falsification: what true labels, random labels and mere diffusion look like."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.falsify import firing
from cpfast.studies.falsify.firing import Cell
from cpfast.studies.falsify.null import null_rotations
from cpfast.studies.store import Results, begun_seeds
from cpfast.train import report
from cpfast.train.config import LABELS, Config
from cpfast.train.plots.style import (
    BLACK,
    BLUE,
    GREY,
    STYLE,
    VERMILION,
    grid,
    load_pyplot,
    save,
    seeds_text,
)

if TYPE_CHECKING:
    from cpfast.studies.falsify.study import Falsification

LABEL_STYLE = {"true": (VERMILION, "D", "-"), "random": (BLUE, "s", "-")}
TIMES_SHOWN = 2.5  # of the last firing epoch: what comes later was not trained


def draw(study: Falsification, results: Results, path: Path) -> None:
    """Rotation of the setting nearest to the configured one, and all firing epochs: a PNG."""
    pyplot = load_pyplot()
    found = firing.cells(study, results)
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
        _draw_curves(left, study, results, _central(found, study.config))
        _draw_epochs(right, found, firing.earliest(study.config.criterion))
        for axes in (left, right):
            grid(axes)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}, {study.config.criterion}, "
            f"{seeds_text(len(begun_seeds(results)))}: true labels, random labels, no data at all"
        )
        save(figure, path)
        pyplot.close(figure)


def _central(found: list[Cell], config: Config) -> Cell:
    def distance(cell: Cell) -> float:
        wanted = (config.batch_size, config.weight_decay, config.epochs)
        return sum(
            abs(value / of - 1) if of else value
            for value, of in zip(cell.setting, wanted, strict=True)
        )

    return min(found, key=distance)


def _draw_curves(axes: Any, study: Falsification, results: Results, cell: Cell) -> None:
    setting, longest = cell.setting, 1
    for labels in LABELS:
        colour, marker, line = LABEL_STYLE[labels]
        entries = [
            e for e in results["runs"]
            if e["labels"] == labels and e["rotation"]
            and all(e[key] == value for key, value in setting._asdict().items())
        ]  # fmt: skip
        for number, entry in enumerate(entries):
            longest = max(longest, entry["epochs"])
            end = entry["period_end"]
            axes.plot(
                range(entry["epochs"] + 1), [0.0, *entry["rotation"]], color=colour, linestyle=line,
                linewidth=1.5, marker=marker, markersize=7, markevery=[] if end is None else [end],
                label=None if number else f"{labels} labels",
            )  # fmt: skip
    null = null_rotations(study.configured(setting), results["train_size"])
    last = setting.total_epochs
    if null is not None:
        curve = [0.0, *null]
        end = cell.null
        last = min(last, round(TIMES_SHOWN * max(longest, 0 if end is None else min(end, last))))
        axes.plot(
            range(len(curve)), curve, color=GREY, linestyle="--", linewidth=1.8,
            marker=None if end is None else "o", markersize=7,
            markevery=[] if end is None else [end],
            label="diffusion null" + (", which does not fire" if end is None else ""),
        )  # fmt: skip
    axes.set_xlim(0, last)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean layer rotation (cosine distance)")
    axes.set_title(
        f"batch {setting.batch_size}, weight decay {setting.weight_decay:g}, "
        f"T = {setting.total_epochs}"
    )
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3,
        title="marked where the rule fires",
    )  # fmt: skip


def _draw_epochs(axes: Any, found: list[Cell], first: int) -> None:
    """Firing epochs with true labels against the others', a point for a setting."""
    rows = [(cell.mean("true"), cell.mean("random"), cell.null) for cell in found]
    sides = (
        ("random labels", BLUE, "s", [(t, r) for t, r, _ in rows if t and r]),
        ("diffusion null", GREY, "o", [(t, n) for t, _, n in rows if t and n]),
    )
    values = [v for _, _, _, pairs in sides for pair in pairs for v in pair]
    axes.set_title(f"Firing epochs of {len(found)} settings (area: how many coincide)")
    axes.set_xlabel("with true labels")
    axes.set_ylabel("with random labels, or of the null")
    if not values:
        axes.text(0.5, 0.5, "the rule did not fire", transform=axes.transAxes, ha="center")
        return
    low, high = 0.8 * min(values), 1.25 * max(values)
    axes.plot([low, high], [low, high], color=BLACK, linewidth=1, label="at the same epoch")
    if min(values) <= first:
        earliest = {"color": BLACK, "linewidth": 1, "linestyle": ":"}
        axes.axvline(first, **earliest, label=f"{first}: as early as the rule can fire")
        axes.axhline(first, **earliest)
    for label, colour, marker, pairs in sides:
        if pairs:
            points = Counter(pairs)
            axes.scatter(
                *zip(*points, strict=True), s=[30 * count for count in points.values()],
                facecolor="none", edgecolor=colour, marker=marker, linewidth=1.6,
            )  # fmt: skip
            # In the legend of one size, however many coincide at the first point.
            axes.plot(
                [], [], color=colour, marker=marker, markersize=6, markerfacecolor="none",
                linestyle="none", label=label,
            )  # fmt: skip
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_formatter("{x:.0f}")
        ticks = [t for t in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
                 if low <= t <= high]  # fmt: skip
        if len(ticks) < 3:
            ticks = list(range(math.ceil(low), math.floor(high) + 1))
        axis.set_ticks(ticks)
        axis.set_ticks([], minor=True)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
