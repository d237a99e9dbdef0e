"""The picture of the early phase: what is measured before each step, and what perturbing costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpfast.studies.early_phase import table
from cpfast.studies.pictures import SERIES, band, caption, dodged, mark, series
from cpfast.studies.statistics import estimate
from cpfast.studies.store import Results, accuracies
from cpfast.train import report
from cpfast.train.plots.style import BLACK, BLUE, GREY, STYLE, VERMILION, grid, load_pyplot, save

if TYPE_CHECKING:
    from cpfast.studies.early_phase.study import EarlyPhase

# By panel: its title, and what is drawn in it of `trace.NAMES`, with a label where there are two.
PANELS: tuple[tuple[str, dict[str, str | None]], ...] = (
    ("test accuracy", {"accuracy": None}),
    ("test loss", {"loss": None}),
    ("gradient norm", {"gradient_norm": None}),
    ("mean magnitude of weights", {"magnitude": None}),
    ("share of signs changed", {"sign_changes": None}),
    ("L2 distance", {"l2_from_start": "from the start", "l2_to_end": "to the end"}),
    ("cosine distance", {"cosine_from_start": "from the start", "cosine_to_end": "to the end"}),
)


def draw(study: EarlyPhase, results: Results, path: Path) -> None:
    """A panel for each measure, and one of the perturbed runs: a PNG at `path`."""
    pyplot = load_pyplot()
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(2, 4, figsize=(15, 7), layout="constrained")
        for axes, (title, columns) in zip(panels.flat, PANELS, strict=False):
            for (name, label), colour in zip(columns.items(), (BLUE, VERMILION), strict=False):
                values = table.traced(results, name)
                band(axes, range(len(values)), values, colour, label)
            axes.set_title(title)
            axes.set_xlabel("iteration")
            if any(columns.values()) and axes.lines:
                axes.legend()
        _draw_perturbed(panels.flat[-1], study, results)
        for axes in panels.flat:
            grid(axes)
        handles, names = panels.flat[-1].get_legend_handles_labels()
        if names:
            figure.legend(handles, names, loc="outside lower right", ncols=len(names), fontsize=9,
                          title="trained on after perturbing")  # fmt: skip
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}: the first "
            f"{study.iterations} iterations, and early weights perturbed; {caption(results)}"
        )
        save(figure, path)
        pyplot.close(figure)


def _draw_perturbed(axes: Any, study: EarlyPhase, results: Results) -> None:
    none = estimate(table.undisturbed(results).values())
    if none is not None:
        axes.axhline(none.mean, color=BLACK, linestyle=":", linewidth=1.3, label="none")
        if none.half is not None:
            axes.axhspan(none.low, none.mean + none.half, color=GREY, alpha=0.2, linewidth=0)
    count = len(study.perturbations)
    for number, name in enumerate(study.perturbations):
        colour, marker = SERIES[number % len(SERIES)]
        ends = [
            estimate(accuracies(results, perturbation=name, epoch=epoch).values())
            for epoch in study.rewinds
        ]
        series(axes, dodged(study.rewinds, number, count), ends, results, colour=colour,
               marker=marker, hollow=number >= len(SERIES), label=name)  # fmt: skip
    axes.set_title("trained on after perturbing, %")
    axes.set_xlabel("perturbed after epoch")
    mark(axes, study.rewinds)
