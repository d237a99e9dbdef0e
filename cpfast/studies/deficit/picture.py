"""The picture of deficits: what is left, by when they end and by when they begin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpfast.studies.deficit import damage
from cpfast.studies.pictures import SERIES, caption, dodged, mark, series
from cpfast.studies.store import Results
from cpfast.train import report
from cpfast.train.plots.style import GREY, STYLE, grid, load_pyplot, save

if TYPE_CHECKING:
    from cpfast.studies.deficit.study import Deficit


def draw(study: Deficit, results: Results, path: Path) -> None:
    """Accuracy against the epoch of removal, damage against that of onset: a PNG at `path`."""
    pyplot = load_pyplot()
    after = study.config.epochs
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
        ends = study.removals
        series(left, ends, [damage.clean(results, end) for end in ends], results,
               colour=GREY, marker="o", linestyle="--", label="clean, as many epochs")  # fmt: skip
        right.axhline(0, color=GREY, linestyle="--", linewidth=1.3)
        count = len(study.deficits)
        for number, deficit in enumerate(study.deficits):
            colour, marker = SERIES[number]
            removal = [damage.accuracy(results, deficit, (0, end)) for end in ends]
            series(left, dodged(ends, number, count), removal, results, colour=colour,
                   marker=marker, label=deficit)  # fmt: skip
            onset = [damage.damage(results, deficit, span) for span in study.windows()]
            series(right, dodged(study.onsets, number, count), onset, results, colour=colour,
                   marker=marker)  # fmt: skip
        mark(right, study.onsets)
        left.set_xlabel("epoch at which the deficit ends")
        left.set_ylabel(f"test accuracy {after} epochs later, %")
        left.set_title("There from the beginning")
        right.set_xlabel("epoch at which the deficit begins")
        right.set_ylabel("points against clean training")
        right.set_title(f"There for {study.window} epochs")
        for axes in (left, right):
            grid(axes)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: a deficit, then {after} "
            f"epochs of clean training; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)
