"""The picture of windows of regularisation: accuracy by when it was on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.pictures import SERIES, caption, dodged, series
from cpfast.studies.statistics import estimate
from cpfast.studies.store import Results
from cpfast.studies.window import effect
from cpfast.train import report
from cpfast.train.plots.style import BLACK, GREY, STYLE, grid, load_pyplot, save

if TYPE_CHECKING:
    from cpfast.studies.window.study import RegularisationWindow


def draw(study: RegularisationWindow, results: Results, path: Path) -> None:
    """A panel for each regulariser: a PNG at `path`."""
    pyplot = load_pyplot()
    with pyplot.rc_context(STYLE):
        count = len(study.regularisers)
        figure, panels = pyplot.subplots(
            1, count, figsize=(max(6.5, 5.5 * count), 5.2), layout="constrained", squeeze=False
        )
        for axes, name in zip(panels[0], study.regularisers, strict=True):
            _draw_panel(axes, study, results, name)
        handles = panels[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: regularised in some of "
            f"{study.config.epochs} epochs; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)


def _draw_panel(axes: Any, study: RegularisationWindow, results: Results, name: str) -> None:
    total = study.config.epochs
    always, never = (
        estimate(values.values())
        for values in (effect.always(results), effect.never(results, name))
    )
    # never is on until 0, or from T on; always the other way round
    kinds = (
        ("on until this epoch", [0, *study.switches, total], [never, None, always], study.until()),
        ("on from this epoch on", [0, *study.switches, total], [always, None, never],
         study.since()),
        (f"on for {study.length} epochs, from this one on", [b for b, _ in study.windows()],
         None, study.windows()),
    )  # fmt: skip
    for number, (label, places, ends, spans) in enumerate(kinds):
        colour, marker = SERIES[number]
        means = effect.along(results, name, spans)
        if ends is not None:
            means = [ends[0], *means, ends[-1]]
        series(axes, dodged(places, number, len(kinds)), means, results, colour=colour,
               marker=marker, label=label)  # fmt: skip
    for end, colour, label in ((always, BLACK, "always"), (never, GREY, "never")):
        if end is not None:
            axes.axhline(end.mean, color=colour, linestyle=":", linewidth=1.3, label=label)
    grid(axes)
    axes.set_title(name)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("test accuracy, %")
