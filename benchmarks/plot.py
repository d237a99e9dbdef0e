"""Draws the growth benchmarks of a results file: python -m benchmarks.plot FILE PICTURE.png"""

from __future__ import annotations

import json
import pathlib
import sys
from collections import defaultdict
from typing import Any

Curves = dict[tuple[str, str], dict[str, list[tuple[float, float]]]]


def curves(results: dict[str, Any]) -> Curves:
    """Per (op and device, axis): each contender's points (size, seconds), and the floor's."""
    panels: Curves = defaultdict(lambda: defaultdict(list))
    rates = results.get("bandwidth", {})
    for record in results["benchmarks"]:
        info = record["extra_info"]
        if "axis" not in info:
            continue
        device, at = info["device"], info["at"]
        panel = panels[f"{info['op'].removeprefix('growth of ')}, {device}", info["axis"]]
        panel[info["contender"]].append((at, record["stats"]["median"]))
        if info["contender"] == "cpfast" and device in rates:
            fastest = max(rates[device].values()) if device == "cpu" else rates[device]["copy"]
            panel["bandwidth"].append((at, info["bytes"] / fastest / 1e9))
    return panels


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = curves(results)
    if not panels:
        sys.exit("plot.py: the file holds no growth benchmarks")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), layout="constrained", squeeze=False
    )
    for axis, ((op, name), panel) in zip(axes[0], panels.items(), strict=True):
        for contender, points in panel.items():
            floor = contender == "bandwidth"
            axis.loglog(
                *zip(*sorted(points), strict=True),
                "--" if floor else "o-",
                color="0.5" if floor else None,
                markersize=4,
                label=contender,
            )
        axis.set(title=op, xlabel=name, ylabel="seconds a call")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.plot FILE PICTURE.png")
    plot(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
