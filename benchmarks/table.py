"""Prints results of the benchmarks as a Markdown table: python -m benchmarks.table FILE..."""

from __future__ import annotations

import json
import pathlib
import sys
from collections import defaultdict
from typing import Any


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def table(results: dict[str, Any]) -> str:
    cases: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for bench in results["benchmarks"]:
        info = bench["extra_info"]
        cases[info["op"], info["case"]][info["contender"]] = {
            "time": bench["stats"]["median"],
            "bytes": info["bytes"],
        }
    cpu = results["machine_info"]["cpu"]
    lines = [
        f"{cpu.get('brand_raw', 'CPU')}, {cpu.get('count', '?')} cores; medians; "
        "ratio = time over cpfast's in the same run.",
        "",
        "| op | case | contender | time | GB/s | ratio |",
        "|---|---|---|---:|---:|---:|",
    ]
    for (op, case), contenders in cases.items():
        ours = contenders["cpfast"]["time"]
        for name, result in contenders.items():
            moved = result["bytes"]
            rate = f"{moved / result['time'] / 1e9:.3g}" if moved else ""
            lines.append(
                f"| {op} | {case} | {name} | {seconds(result['time'])} | {rate} "
                f"| {result['time'] / ours:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m benchmarks.table FILE...")
    for name in sys.argv[1:]:
        print(table(json.loads(pathlib.Path(name).read_text())))
