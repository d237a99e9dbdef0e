"""What all pictures share. They are drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpfast.train.errors import require
from cpfast.train.runfolder import write_atomically

STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
}
# Okabe and Ito's colours, told apart under every kind of colour blindness; markers say the same.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
GREY = "#7F7F7F"
SEEDS_FOR_INTERVAL = 3  # that of two would be 13 standard errors to each side


def load_pyplot() -> Any:
    matplotlib = require("matplotlib", "a picture", ", or pass --no-plot")
    matplotlib.use("Agg")
    return require("matplotlib.pyplot", "a picture", ", or pass --no-plot")


def save(figure: Any, path: Path) -> None:
    """A PNG at `path`; titles that are too long for one line take several."""
    for text in (*figure.texts, *(axes.title for axes in figure.axes)):
        text.set_wrap(True)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def grid(axes: Any) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def interval_text(most: int, cut: bool) -> str:
    """What a title says of the intervals where an arm has at most so many seeds."""
    if most < SEEDS_FOR_INTERVAL:
        return " (mean and single runs)" if most == 2 else ""
    return f" (95 % intervals{', cut at the frame' if cut else ''})"


def seeds_text(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
