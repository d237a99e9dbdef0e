"""The picture of an enlightenment period: the order on the way, and accuracy by the period."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.enlightenment import effect
from cpfast.studies.enlightenment.arms import (
    BOOST,
    FIRST,
    HELD_AGAINST,
    MIXUP,
    ORDINARY,
    PAUSE,
    RANDOM,
    REMOVAL,
    Run,
    early,
    late,
)
from cpfast.studies.pictures import band, caption, dodged, mark, series
from cpfast.studies.statistics import estimate
from cpfast.studies.store import Results
from cpfast.train import report
from cpfast.train.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    STYLE,
    VERMILION,
    grid,
    load_pyplot,
    save,
)

if TYPE_CHECKING:
    from cpfast.studies.enlightenment.study import Enlightenment

STYLES = {
    PAUSE: (VERMILION, "D", "no mixup"), BOOST: (BLUE, "s", "a larger alpha"),
    REMOVAL: (GREEN, "^", "highest losses"), RANDOM: (PURPLE, "v", "as many at random"),
}  # fmt: skip
PANELS = {"mixup": (PAUSE, BOOST), "samples left out": (REMOVAL, RANDOM)}
SHADES = ("0.80", "0.89", "0.96")  # disordered, ordering, ordered


def draw(study: Enlightenment, results: Results, path: Path) -> None:
    """The order and accuracy along training, accuracy against the length: a PNG at `path`."""
    pyplot = load_pyplot()
    shown = {
        title: arms for title, names in PANELS.items()
        if (arms := [arm for arm in names if arm in study.arms()])
    }  # fmt: skip
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, 1 + len(shown), figsize=(5.2 * (1 + len(shown)), 5.4), layout="constrained"
        )
        _draw_order(panels[0], results)
        for axes, (title, arms) in zip(panels[1:], shown.items(), strict=True):
            _draw_lengths(axes, study, results, title, arms)
        for axes in panels:
            grid(axes)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=9)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: other training data in some "
            f"of {study.config.epochs} epochs; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)


def _draw_order(axes: Any, results: Results) -> None:
    epochs = [e.mean for e in effect.along(results, ORDINARY, "epoch")]
    axes.set_xlabel("epoch")
    axes.set_title("The order of the outputs")
    axes.set_ylabel("order parameter, accuracy of the test data")
    axes.set_ylim(-0.02, 1.02)
    if not epochs:
        return
    axes.set_xscale("symlog", linthresh=epochs[1], linscale=0.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, epochs[-1])
    bounds = [
        estimate(effect.when(results, ORDINARY, name).values()) for name in ("ordering", "ordered")
    ]
    places = [0.0, *(bound.mean for bound in bounds if bound is not None), epochs[-1]]
    names = ("disordered", "ordering", "ordered") if len(places) == 4 else ("",)
    for begin, end, name, shade in zip(places, places[1:], names, SHADES, strict=False):
        axes.axvspan(begin, end, color=shade, linewidth=0, zorder=0, label=name or None)
    for column, colour in (("order", BLUE), ("accuracy", VERMILION)):
        values = effect.along(results, ORDINARY, column)
        band(axes, epochs, values, colour, f"{column}, ordinary")
        means = [value.mean for value in effect.along(results, MIXUP, column)]
        axes.plot(epochs[: len(means)], means, color=colour, linestyle="--", linewidth=1.5,
                  label=f"{column}, mixup" if means else None)  # fmt: skip
    half = estimate(effect.when(results, ORDINARY, "half_way").values())
    if half is not None:
        axes.axvline(half.mean, color=GREY, linestyle=":", linewidth=1.3,
                     label="accuracy half way from chance")  # fmt: skip


def _draw_lengths(
    axes: Any, study: Enlightenment, results: Results, title: str, arms: list[str]
) -> None:
    total, kinds = study.config.epochs, []
    for arm in arms:
        kinds.append((arm, "early", [early(arm, n) for n in study.lengths_of(arm)]))
        kinds.append((arm, "later", [late(arm, n, total) for n in study.late_of(arm)]))
    kinds = [kind for kind in kinds if kind[2]]
    for number, (arm, kind, runs) in enumerate(kinds):
        colour, marker, label = STYLES[arm]
        lengths = [run.end - run.begin + FIRST[arm] for run in runs]
        means = [estimate(effect.accuracy(results, run).values()) for run in runs]
        series(axes, dodged(lengths, number, len(kinds)), means, results, colour=colour,
               marker=marker, linestyle="-" if kind == "early" else "--", hollow=kind == "later",
               label=f"{label}, {kind}")  # fmt: skip
    held = {arm for one in arms for arm in HELD_AGAINST[one]} - {RANDOM}
    for control in map(Run, sorted(held)):
        end = estimate(effect.accuracy(results, control).values())
        if end is not None:
            axes.axhline(end.mean, color=BLACK if control.arm == ORDINARY else GREY, linestyle=":",
                         linewidth=1.3, label=f"{control.arm} throughout")  # fmt: skip
    mark(axes, study.lengths)
    axes.set_title(f"By the length of the period: {title}")
    axes.set_xlabel("epochs")
    axes.set_ylabel("test accuracy, %")
