"""The pictures of a comparison: accuracy against time, and rotation with its firing epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import recipes
from cpfast.studies.compare.arms import BUDGETED, Arm
from cpfast.studies.compare.verdict import Summary, summarise
from cpfast.studies.statistics import percent
from cpfast.studies.store import Results, begun_seeds
from cpfast.train import report
from cpfast.train.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SEEDS_FOR_INTERVAL,
    SKY,
    STYLE,
    VERMILION,
    grid,
    interval_text,
    load_pyplot,
    save,
    seeds_text,
)

if TYPE_CHECKING:
    from cpfast.studies.compare.study import Comparison

BASE_STYLE = {
    "full": (BLACK, "o"), "detector": (VERMILION, "D"), "k1": (BLUE, "s"),
    "k1_matched": (GREEN, "^"), "fixed": (PURPLE, "v"), "shortened": (ORANGE, "P"),
    "rs2": (SKY, "X"), "k1_warped": (GREY, "s"),
}  # fmt: skip
SEEDS_SHOWN = 10  # one by one: the points of more would hide the means
# of a method's arms; their markers are hollow but for that which is nothing else
COLOURS = (GREY, PURPLE, BLUE, GREEN, ORANGE, VERMILION, BLACK)


def style_of(arm: Arm) -> tuple[str, str, bool]:
    """Colour, marker, and whether it is filled."""
    if arm.name in BASE_STYLE:
        return *BASE_STYLE[arm.name], True
    if arm.budget is not None and arm.base is not None:
        return *BASE_STYLE[arm.base], False
    methods = [name for name in (*policies, *recipes, *criteria) if name != "random"]
    colours = {"random": SKY, **dict(zip(methods, cycle(COLOURS), strict=False))}
    alone = "h" if arm.policy is None else "*"
    marker = alone if arm.base is None else BASE_STYLE[arm.base][1]
    return colours[arm.policy or method_of(arm)], marker, arm.base is None


def method_of(arm: Arm) -> str:
    """Of an arm by its name: the recipe's, or the criterion's."""
    return arm.name.removeprefix("k1+").removeprefix("detector:")


def draw_accuracy(study: Comparison, results: Results, path: Path) -> None:
    """Test accuracy against training time, per arm with its interval: a PNG at `path`."""
    pyplot = load_pyplot()
    config, known = study.config, study.known()
    summaries, _ = summarise(results)
    drawn = {arm: s for arm, s in summaries.items() if s.entries}
    own = {arm: s for arm, s in drawn.items() if known[arm].budget is None}
    begun = len(begun_seeds(results))
    most = max((len(s.entries) for s in drawn.values()), default=0)
    panels = 3 if len(own) < len(drawn) else 2
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            1, panels, figsize=(5.2 * panels, 4.6 + 0.11 * len(own)), layout="constrained"
        )
        handles = []
        for arm, summary in own.items():
            colour, marker, filled = style_of(known[arm])
            face = {"markerfacecolor": colour if filled else "white"}
            times, values = _mean_curve([e["curve"] for e in summary.entries.values()])
            axes[0].plot(
                times, values, color=colour, marker=marker, markersize=4, linewidth=1.3, **face
            )
            handles.append(_point(axes[1], summary, colour, marker, filled))
        labels = [f"{a}: {known[a].describe(config.repeats, study.at)}" for a in own]
        finals = [s.accuracy.mean for s in own.values() if s.accuracy is not None]
        if finals:
            # The climb to where the arms differ is the same for all.
            spread = max(finals) - min(finals) + 1
            axes[0].set_ylim(max(0, min(finals) - 2 * spread), min(100.3, max(finals) + spread))
        cut = _fit(axes[1], own)
        axes[0].set_title("During training" + " (mean over seeds)" * (most > 1))
        axes[1].set_title("After the last epoch" + interval_text(most, cut))
        if panels == 3:
            more = _draw_budgets(axes[2], drawn, known)
            handles += more.values()
            labels += more
            of_budgets = {a: s for a, s in drawn.items() if a not in own or a == "full"}
            cut = _fit(axes[2], of_budgets, crowd=True)
            axes[2].set_title("By budget" + interval_text(most, cut))
        for panel in axes:
            panel.set_xlabel("training time, s")
            panel.set_ylabel("test accuracy, %")
            panel.set_xlim(left=0)
            grid(panel)
        figure.legend(handles, labels, loc="outside lower center", ncols=panels, fontsize=9)
        caveat = ": the mechanism, not a benefit" if config.data == "digits" else ""
        figure.suptitle(
            f"{report.data_name(config)}, {config.model}, {config.epochs} epochs, "
            f"{seeds_text(begun)}{caveat}"
        )
        save(figure, path)
        pyplot.close(figure)


def _point(
    axes: Any, summary: Summary, colour: str, marker: str, filled: bool = True, crowd: bool = False
) -> Any:
    """The mean with its intervals, and each seed small where they are few; in a crowd of points
    only the mean with its accuracy's interval.
    """
    assert summary.seconds is not None and summary.accuracy is not None
    sure = len(summary.entries) >= SEEDS_FOR_INTERVAL
    if 1 < len(summary.entries) <= SEEDS_SHOWN and not crowd:
        axes.plot(
            [e["seconds"] for e in summary.entries.values()],
            [percent(e) for e in summary.entries.values()],
            color=colour, marker=marker, markersize=3.5, alpha=0.4, linestyle="none",
        )  # fmt: skip
    return axes.errorbar(
        summary.seconds.mean, summary.accuracy.mean, yerr=summary.accuracy.half if sure else None,
        xerr=summary.seconds.half if sure and not crowd else None, color=colour, marker=marker,
        markersize=7, markerfacecolor=colour if filled else "white", linewidth=1.2, capsize=3,
        linestyle="none", zorder=3,
    )  # fmt: skip


def _fit(axes: Any, drawn: Mapping[str, Summary], crowd: bool = False) -> bool:
    """Limits by the single runs, to which wide intervals would leave no room; whether these are
    cut.
    """
    points = [point for s in drawn.values() for point in _shown(s)]
    if points:
        times, values = zip(*points, strict=True)
        margin = max(0.5, 0.15 * (max(values) - min(values)))
        axes.set_ylim(min(values) - margin, min(max(values) + margin, 100.3))
        axes.set_xlim(0, 1.12 * max(times))
    drawn_intervals = [
        (estimate, limits)
        for s in drawn.values() if len(s.entries) >= SEEDS_FOR_INTERVAL
        for estimate, limits in ((s.accuracy, axes.get_ylim()), (s.seconds, axes.get_xlim()))
        if estimate is not None and not (crowd and estimate is s.seconds)
    ]  # fmt: skip
    return any(e.low < low or e.mean + (e.half or 0) > high for e, (low, high) in drawn_intervals)


def _shown(summary: Summary) -> list[tuple[float, float]]:
    """Time and accuracy of the single runs, or of the mean alone where there are too many."""
    if len(summary.entries) <= SEEDS_SHOWN:
        return [(e["seconds"], percent(e)) for e in summary.entries.values()]
    assert summary.seconds is not None and summary.accuracy is not None
    return [(summary.seconds.mean, summary.accuracy.mean)]


def _draw_budgets(
    axes: Any, drawn: Mapping[str, Summary], known: Mapping[str, Arm]
) -> dict[str, Any]:
    """A line for each way to spend a budget; at 100 % those of k repeats are full itself.

    Returns:
        The handles of the legend by their labels.
    """
    handles = {}
    if "full" in drawn:
        _point(axes, drawn["full"], *BASE_STYLE["full"], crowd=True)
    for base in BUDGETED:
        points = {
            budget: summary
            for name, summary in drawn.items()
            if known[name].base == base and (budget := known[name].budget) is not None
        }
        if not points:
            continue
        colour, marker = BASE_STYLE[base]
        label = f"{base}@: {', '.join(map(str, sorted(points)))} % of full's samples"
        if base != "k1" and "full" in drawn:
            points[100] = drawn["full"]
        line = [points[b] for b in sorted(points)]
        (handles[label],) = axes.plot(
            [s.seconds.mean for s in line if s.seconds],
            [s.accuracy.mean for s in line if s.accuracy],
            color=colour, linewidth=1.3, linestyle="--", marker=marker, markersize=6,
        )  # fmt: skip
        for s in line:
            if s.arm != "full":
                _point(axes, s, colour, marker, crowd=True)
    return handles


def draw_rotation(study: Comparison, results: Results, path: Path) -> None:
    """The mean layer rotation of full in each seed, and where the detector fired: a PNG."""
    pyplot = load_pyplot()
    config = study.config
    runs = [e for e in results["runs"] if e["arm"] == "full" and e["rotation"]]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.5, 4.4), layout="constrained")
        curves = [[0.0, *e["rotation"]] for e in runs]
        for curve in curves:
            axes.plot(range(len(curve)), curve, color=GREY, linewidth=0.9, alpha=0.8)
        if curves:
            mean = [statistics.fmean(point) for point in zip(*curves, strict=False)]
            axes.plot(
                range(len(mean)), mean, color=BLACK, linewidth=2.2,
                label="mean over seeds" if len(curves) > 1 else "mean of the layers",
            )  # fmt: skip
        fired = [(e["period_end"], e["rotation"]) for e in runs if e["period_end"] is not None]
        if fired:
            ends = ", ".join(map(str, sorted({end for end, _ in fired})))
            axes.plot(
                [end for end, _ in fired], [rotation[end - 1] for end, rotation in fired],
                color=VERMILION, marker="D", markersize=7 if len(fired) <= SEEDS_SHOWN else 3.5,
                linestyle="none", zorder=3,
                label=f"{config.criterion}: the period ends after epoch {ends}",
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel("rotation from initialisation\n(cosine distance, mean of layers)")
        axes.set_xlim(0, config.epochs)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        if curves:
            axes.legend(loc="lower right")
        grid(axes)
        axes.set_title(
            f"{report.data_name(config)}, {config.model}, k = {config.repeats} throughout, "
            f"{seeds_text(len(runs))}"
        )
        save(figure, path)
        pyplot.close(figure)


def draw_equal_time(study: Comparison, results: Results, path: Path) -> None:
    """Each arm's accuracy less that of ordinary training of its time, the best above: a PNG."""
    pyplot = load_pyplot()
    config, known = study.config, study.known()
    summaries, _ = summarise(results)
    gains = [(s.arm, s.to_equal) for s in summaries.values() if s.to_equal is not None]
    gains.sort(key=lambda gain: gain[1].mean)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.5, 1.6 + 0.24 * len(gains)), layout="constrained")
        axes.axvline(0, color=BLACK, linewidth=1)
        for row, (arm, gain) in enumerate(gains):
            colour, marker, filled = style_of(known[arm])
            axes.errorbar(
                gain.mean, row, xerr=gain.half, color=colour, marker=marker, markersize=6,
                markerfacecolor=colour if filled else "white", linewidth=1.2, capsize=3,
            )  # fmt: skip
        axes.set_yticks(range(len(gains)), [arm for arm, _ in gains])
        axes.set_ylim(-0.7, len(gains) - 0.3)
        axes.set_xlabel("test accuracy less that of k1 of the same time, points (95 % intervals)")
        grid(axes)
        caveat = ": the mechanism, not a benefit" if config.data == "digits" else ""
        axes.set_title(
            f"{report.data_name(config)}, {config.model}, {seeds_text(len(begun_seeds(results)))}"
            f"{caveat}"
        )
        save(figure, path)
        pyplot.close(figure)


def _mean_curve(curves: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Mean time and mean accuracy in % at each evaluation that all seeds have."""
    points = list(zip(*curves, strict=False))
    times = [statistics.fmean(time for time, _ in point) for point in points]
    values = [100 * statistics.fmean(accuracy for _, accuracy in point) for point in points]
    return times, values
