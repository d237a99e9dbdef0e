"""When each criterion fires, on true and on random labels: a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpfast.studies.store import Results, begun_seeds
from cpfast.train import report
from cpfast.train.config import LABELS
from cpfast.train.plots.style import BLUE, STYLE, VERMILION, grid, load_pyplot, save, seeds_text

if TYPE_CHECKING:
    from cpfast.studies.criteria.study import Criteria

LABEL_STYLE = {"true": (VERMILION, "D"), "random": (BLUE, "s")}
NEVER = 1.08  # of the planned epochs: where those stand that did not fire


def draw(study: Criteria, results: Results, path: Path) -> None:
    """A row a criterion, a mark a run: the share of the planned epochs after which it fired."""
    pyplot = load_pyplot()
    names = study.watched(results)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.5 * len(names)), layout="constrained")
        for labels in LABELS:
            colour, marker = LABEL_STYLE[labels]
            xs, ys = [], []
            for place, name in enumerate(names):
                runs = [e for e in results["runs"]
                        if e["labels"] == labels and name in e["verdicts"]]  # fmt: skip
                offset = -0.15 if labels == "true" else 0.15
                for entry in runs:
                    end = entry["verdicts"][name]["period_end"]
                    total = study.configured(entry["setting"], labels).epochs
                    xs.append(NEVER if end is None else end / total)
                    ys.append(place + offset)
            axes.scatter(xs, ys, color=colour, marker=marker, s=18, alpha=0.5, linewidths=0,
                         label=f"{labels} labels")  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.axvline((1 + NEVER) / 2, color="0.6", linewidth=0.8)
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0, NEVER]
        axes.set_xticks(ticks, [*(f"{t:g}" for t in ticks[:-1]), "never"])
        axes.set_xlabel("share of the planned epochs after which it fired")
        grid(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(
            f"{report.data_name(study.config)}, {study.config.model}, "
            f"{seeds_text(len(begun_seeds(results)))}: when each criterion ends the period"
        )
        save(figure, path)
        pyplot.close(figure)
