"""The picture of a run: rotation of its layers, slope, accuracy and loss, and the period's end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpfast.moment import Moment
from cpfast.train import report
from cpfast.train.config import Config
from cpfast.train.errors import require
from cpfast.train.plots.style import STYLE, load_pyplot, save

END_COLOUR = "#D55E00"
MEAN_COLOUR = "#000000"
LOSS_COLOUR = "#0072B2"
FEW_LAYERS = 8


def draw_run(summary: dict[str, Any], path: Path) -> None:
    """Rotation of each layer, its mean, the slope, what was learned, and the end of the period: a
    PNG at `path`."""
    pyplot = load_pyplot()
    config: Config = summary["config"]
    metrics = [line for line in summary["metrics"] if line["rotation"]]
    # At initialisation nothing has rotated.
    epochs = [0, *(line["epoch"] for line in metrics)]
    end = summary["period_end"]
    with pyplot.rc_context(STYLE):
        figure, (top, bottom, learned) = pyplot.subplots(
            3, 1, figsize=(7.5, 7.5), sharex=True, height_ratios=(2, 1, 1.3), layout="constrained"
        )
        _draw_learning(learned, summary["metrics"])
        _draw_layers(figure, top, metrics, epochs)
        top.plot(
            epochs, [0.0, *(line["rotation_mean"] for line in metrics)],
            color=MEAN_COLOUR, linewidth=2.5, label="mean",
        )  # fmt: skip
        top.set_ylabel("rotation from initialisation\n(cosine distance)")
        top.set_ylim(bottom=0)

        slopes = [(line["epoch"], line["slope"]) for line in metrics if line["slope"] is not None]
        bottom.plot([e for e, _ in slopes], [s for _, s in slopes], color=MEAN_COLOUR, linewidth=2)
        bottom.axhline(1, color="0.4", linestyle="--", linewidth=1)
        bottom.annotate(
            "1 (45°)", (1, 1), xycoords=("axes fraction", "data"), xytext=(-2, 3),
            textcoords="offset points", ha="right", color="0.3",
        )  # fmt: skip
        bottom.set_ylabel("slope of the mean\n(per whole training)")
        learned.set_xlabel("epoch")
        bottom.set_xlim(0, config.epochs)
        bottom.set_ylim(0, max([2.0, *(1.1 * slope for _, slope in slopes)]))
        if not slopes:
            bottom.text(
                0.5, 0.25, "no slope: fewer epochs than its window, or another criterion",
                transform=bottom.transAxes, ha="center", color="0.4",
            )  # fmt: skip
        for axes in (top, bottom, learned):
            axes.grid(color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
            if end is not None:
                axes.axvline(end, color=END_COLOUR, linewidth=1.8)
        if end is not None:
            right = end < 0.45 * config.epochs
            bottom.annotate(
                f"critical period ends after epoch {end}{_change(config, end)}",
                (end, 0.94), xycoords=("data", "axes fraction"), va="top",
                xytext=(6 if right else -6, 0), textcoords="offset points",
                ha="left" if right else "right", color=END_COLOUR, fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        accuracy = summary["test_accuracy"]
        shown = "" if accuracy is None else f", {100 * accuracy:.1f} % test accuracy"
        top.set_title(f"{report.data_name(config)}, {config.model}, {config.method}{shown}")
        save(figure, path)
        pyplot.close(figure)


def _draw_learning(axes: Any, metrics: Sequence[dict[str, Any]]) -> None:
    """Test accuracy to the left, the training's loss to the right."""
    tested = [line for line in metrics if line["test_accuracy"] is not None]
    axes.plot(
        [line["epoch"] for line in tested], [100 * line["test_accuracy"] for line in tested],
        color=MEAN_COLOUR, linewidth=2, marker="o", markersize=3,
    )  # fmt: skip
    axes.set_ylabel("test accuracy, %")
    trained = [line for line in metrics if line["train_loss"] is not None]
    losses = axes.twinx()
    losses.plot(
        [line["epoch"] for line in trained], [line["train_loss"] for line in trained],
        color=LOSS_COLOUR, linewidth=1.4,
    )  # fmt: skip
    losses.set_ylabel("training loss", color=LOSS_COLOUR)
    losses.set_ylim(bottom=0)


def _change(config: Config, end: int) -> str:
    """What the recipe does at the end of the period."""
    if end == config.epochs:
        return ""
    recipe = config.recipe()
    before = recipe.settings(Moment(end, config.epochs))
    after = recipe.settings(Moment(end, config.epochs, end))
    changes = []
    if after.repeats != before.repeats:
        changes.append(f"k = {before.repeats} to {after.repeats}")
    if after.prune and not before.prune:
        changes.append("pruning on")
    return "\n" * bool(changes) + ", ".join(changes)


def _draw_layers(
    figure: Any, axes: Any, metrics: Sequence[dict[str, Any]], epochs: Sequence[int]
) -> None:
    """Layers from input (dark) to output (light): a legend for few, a colour bar for many."""
    matplotlib = require("matplotlib", "a picture")
    names = list(metrics[0]["rotation"]) if metrics else []
    # the palest end cannot be read on white
    colours = matplotlib.colors.LinearSegmentedColormap.from_list(
        "layers", matplotlib.colormaps["viridis"]([0.0, 0.25, 0.5, 0.7, 0.88])
    )
    few = len(names) <= FEW_LAYERS
    for number, name in enumerate(names):
        axes.plot(
            epochs, [0.0, *(line["rotation"][name] for line in metrics)],
            color=colours(number / max(1, len(names) - 1)),
            linewidth=1.4 if few else 0.8, label=name.removesuffix(".weight") if few else None,
        )  # fmt: skip
    if few:
        axes.plot([], [], color=MEAN_COLOUR, linewidth=2.5, label="mean of the layers")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="layer")
    else:
        axes.plot([], [], color=MEAN_COLOUR, linewidth=2.5, label="mean of the layers")
        axes.legend(loc="lower right")
        scale = matplotlib.cm.ScalarMappable(
            matplotlib.colors.Normalize(1, len(names)), cmap=colours
        )
        figure.colorbar(scale, ax=axes, label="layer, from input to output", pad=0.01)
