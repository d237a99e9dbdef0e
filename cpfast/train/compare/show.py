"""The table and the pictures of a comparison, beside its results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpfast.train import plots
from cpfast.train.compare.plan import RESULTS
from cpfast.train.compare.results import plan_of
from cpfast.train.compare.table import document
from cpfast.train.errors import UserError
from cpfast.train.runfolder import write_atomically

TABLE = "table.md"
PICTURES = {
    "arms": {"accuracy.png": plots.draw_comparison, "rotation.png": plots.draw_rotation},
    "falsify": {"falsify.png": plots.draw_falsification},
    "oracle": {"oracle.png": plots.draw_oracle},
}


def show(path: Path, results: Mapping[str, Any], plot: bool) -> str:
    """Write the Markdown table and, with `plot`, the pictures; what to print.

    Raises:
        UserError: nothing is finished yet.
    """
    if not results["runs"]:
        raise UserError(f"{path / RESULTS}: no run is finished yet")
    made = document(results, plan_of(results).wanted())
    text = made.markdown()
    lines = [made.text(), f"table: {path / TABLE}"]
    if plot:
        for name, draw in PICTURES[results["kind"]].items():
            draw(results, path / name)
            lines.append(f"picture: {path / name}")
            text += f"\n![{name}]({name})\n"
    write_atomically(path / TABLE, lambda file: file.write(text.encode()))
    return "\n".join(lines)
