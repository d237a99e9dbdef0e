"""The picture of an oracle sweep: accuracy and samples against the switch epoch, with the picks."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.oracle import regret
from cpfast.studies.oracle.regret import Sweep
from cpfast.studies.pictures import SERIES
from cpfast.studies.statistics import interval, percent
from cpfast.studies.store import Results, begun_seeds
from cpfast.train import report
from cpfast.train.plots.style import (
    BLACK,
    GREY,
    SEEDS_FOR_INTERVAL,
    STYLE,
    grid,
    interval_text,
    load_pyplot,
    save,
    seeds_text,
)

if TYPE_CHECKING:
    from cpfast.studies.oracle.study import Oracle

COLUMNS = 4


def draw(study: Oracle, results: Results, path: Path) -> None:
    """Of each setting a pair of panels: a PNG at `path`."""
    pyplot = load_pyplot()
    found = regret.sweeps(study, results)
    criteria = sorted({criterion for sweep in found for criterion in sweep.picks})
    columns = min(COLUMNS, max(1, len(found)))
    rows = max(1, math.ceil(len(found) / columns))
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            2 * rows, columns, squeeze=False, height_ratios=[2.2, 1] * rows,
            figsize=(max(6.5, 3.9 * columns), 4.4 * rows + 0.6 + 0.1 * len(criteria)),
            layout="constrained",
        )  # fmt: skip
        cut, most = False, max((len(sweep.seeds()) for sweep in found), default=0)
        for number in range(rows * columns):
            row, column = divmod(number, columns)
            top, bottom = axes[2 * row, column], axes[2 * row + 1, column]
            if number < len(found):
                cut |= _draw_sweep(top, bottom, found[number], study, criteria)
            else:
                top.set_visible(False)
                bottom.set_visible(False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: k = {study.config.repeats}, "
            f"then 1 from an epoch on\n{seeds_text(len(begun_seeds(results)))}"
            f"{interval_text(most, cut)}"
        )
        save(figure, path)
        pyplot.close(figure)


def _draw_sweep(top: Any, bottom: Any, sweep: Sweep, study: Oracle, criteria: list[str]) -> bool:
    """Whether an interval is cut."""
    config = study.configured(sweep.setting)
    switches = sweep.common()
    places = [_place(e) for e in switches]
    accuracies = [
        interval([percent(e) for e in sweep.runs[switch].values()]) for switch in switches
    ]
    runs = [(_place(x), percent(e)) for x in switches for e in sweep.runs[x].values()]
    most = max((len(sweep.runs[x]) for x in switches), default=0)
    sure = most >= SEEDS_FOR_INTERVAL
    # by the single runs, to which wide intervals would leave no room
    values = [value for _, value in runs] or [100.0]
    margin = max(0.5, 0.4 * (max(values) - min(values)))
    low, high = min(values) - margin, min(max(values) + margin, 100.3)
    cut = sure and any(a.low < low or a.mean + (a.half or 0) > high for a in accuracies)
    top.errorbar(
        places, [a.mean for a in accuracies], yerr=[a.half or 0 for a in accuracies] if sure
        else None, color=BLACK, marker="o", markersize=4, linewidth=1.3, capsize=2,
        label="mean over seeds" if most > 1 else "one seed",
    )  # fmt: skip
    if most > 1:
        top.plot(
            *zip(*runs, strict=True), color=GREY, marker="o", markersize=2.5, linestyle="none",
            label="each seed",
        )  # fmt: skip
    samples = [
        statistics.fmean(e["forward_samples"] for e in sweep.runs[switch].values()) / 1000
        for switch in switches
    ]
    bottom.plot(places, samples, color=GREY, marker="o", markersize=4, linewidth=1.3)
    for number, criterion in enumerate(criteria):
        colour, marker = SERIES[number % len(SERIES)]
        style = {
            "color": colour, "marker": marker, "markersize": 6, "linestyle": "none", "zorder": 3,
            "markerfacecolor": colour if number < len(SERIES) else "white",
        }  # fmt: skip
        picked = sweep.picks.get(criterion, {})
        chosen = [(pick, sweep.runs[pick][seed]) for seed, pick in picked.items()
                if seed in sweep.runs.get(pick, {})]  # fmt: skip
        x = [_place(pick) for pick, _ in chosen]
        top.plot(x, [percent(e) for _, e in chosen], label=f"picked by {criterion}", **style)
        bottom.plot(x, [e["forward_samples"] / 1000 for _, e in chosen], **style)
    top.set_ylim(low, high)
    shown = sorted({0, sweep.total, *study.grid(sweep.setting)})
    for axes in (top, bottom):
        axes.set_xticks([_place(e) for e in shown], [str(e) for e in shown])
        grid(axes)
    top.tick_params(labelbottom=False)
    bottom.tick_params(axis="x", labelsize=8)
    bottom.set_ylim(0, 1.12 * bottom.get_ylim()[1])
    bottom.set_xlabel("k = 1 after epoch (0: k1, last: full)")
    top.set_ylabel("test accuracy, %")
    bottom.set_ylabel("1000 samples", fontsize=8)
    top.set_title(
        f"{sweep.setting}: batch {config.batch_size}, wd {config.weight_decay:g}, "
        f"T = {config.epochs}",
        fontsize=9,
    )
    return cut


def _place(epoch: int) -> float:
    """On a logarithmic axis that begins with 0."""
    return math.log2(epoch) + 1 if epoch else 0.0
