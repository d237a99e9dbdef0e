"""Prints results of the benchmarks as Markdown tables: python -m benchmarks.table FILE..."""

from __future__ import annotations

import json
import pathlib
import sys
from collections import defaultdict
from typing import Any

LEGEND = (
    "Medians. GB/s = the least bytes that the op must move, over the time; of bandwidth = that "
    "over the bandwidth measured in the same run (a cache may beat it). Host = what a call keeps "
    "the host; memory = the most that a call holds beyond its inputs; ratio = time over cpfast's, "
    "round by round in the same run. Time on a GPU is the device's: by CUDA graph replay where "
    "marked g, else by events."
)


def scaled(value: float | None, units: tuple[tuple[str, float], ...]) -> str:
    if value is None:
        return ""
    for unit, scale in units:
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    unit, scale = units[-1]
    return f"{value / scale:.3g} {unit}"


def seconds(value: float | None) -> str:
    return scaled(value, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)))


def size(value: float | None) -> str:
    return scaled(value, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)))


def machine(results: dict[str, Any]) -> str:
    info = results.get("machine_info", {})
    cpu = info.get("cpu", {})
    parts = [f"{cpu.get('brand_raw', 'CPU')}, {cpu.get('count', '?')} cores"]
    parts += [info["gpu"]] if "gpu" in info else []
    parts += [f"torch {info['torch']}"] if "torch" in info else []
    return "; ".join(parts)


def row(record: dict[str, Any], ours: float | None) -> str:
    info, time = record["extra_info"], record["stats"]["median"]
    moved = info.get("bytes")
    rate = moved / time / 1e9 if moved else None
    fraction = info.get("fraction")
    # Older files hold no ratio: there, contenders ran one after the other.
    ratio = info["ratio"][1] if info.get("ratio") else time / ours if ours else None
    cells = [
        info["op"],
        info["case"],
        info["contender"],
        seconds(time) + (" g" if info.get("clock") == "graph" else ""),
        size(moved) if moved else "",
        f"{rate:.3g}" if rate else "",
        "" if fraction is None else f"{fraction:.2f}",
        seconds(info.get("host")),
        size(info.get("peak")),
        "" if ratio is None else f"{ratio:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def training_steps(results: dict[str, Any]) -> list[str]:
    """A step with scores and its share of the rotation, over the plain one."""
    lines = []
    for record in results["benchmarks"]:
        info = record["extra_info"]
        if info["contender"] == "cpfast" and "step_ratio" in info:
            step, noise = (
                f"{median:.4f} [{low:.4f}, {high:.4f}]"
                for low, median, high in (info["step_ratio"], info["noise_ratio"])
            )
            lines.append(
                f"- {info['case']}, {info['device']}: {step} of the plain step "
                f"(the plain step of itself: {noise})"
            )
    if lines:
        return ["", "Training steps with scores and rotation; medians, 95 % intervals:", "", *lines]
    return []


def table(results: dict[str, Any]) -> str:
    devices: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = defaultdict(dict)
    for record in results["benchmarks"]:
        info = record["extra_info"]
        cases = devices[info.get("device", "cpu")]
        cases.setdefault((info["op"], info["case"]), []).append(record)
    lines = [f"{machine(results)}. {LEGEND}"]
    for device, cases in devices.items():
        rates = results.get("bandwidth", {}).get(device, {})
        measured = ", ".join(f"{name} {rate:.3g} GB/s" for name, rate in rates.items())
        lines += ["", f"**{device}**" + (f": {measured}" if measured else ""), ""]
        lines.append(
            "| op | case | contender | time | bytes | GB/s | of bandwidth | host | memory | ratio |"
        )
        lines.append("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
        # What the ops cost at their shapes comes before how they grow.
        for _, records in sorted(cases.items(), key=lambda c: c[0][0].startswith("growth of")):
            medians = {r["extra_info"]["contender"]: r["stats"]["median"] for r in records}
            lines += [row(record, medians.get("cpfast")) for record in records]
    lines += training_steps(results)
    notes = results.get("notes", {})
    if notes:
        lines += ["", "Left out, or of note:", ""]
    for case, reason in notes.items():
        reasons = reason if isinstance(reason, dict) else {"": reason}
        lines += [f"- {case}: {n + ': ' if n else ''}{why}" for n, why in reasons.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m benchmarks.table FILE...")
    for name in sys.argv[1:]:
        print(table(json.loads(pathlib.Path(name).read_text())))
