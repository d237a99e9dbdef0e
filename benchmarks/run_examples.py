"""What each example of examples/ comes to, beside its twin that has nothing of cpfast.

    python -m benchmarks.run_examples [--out FILE]

Each runs in a process of its own, on one thread. What it prints last is what it came to; the
samples that it has trained on are its losses', of the twin those of all epochs. One seed: how far
two accuracies differ says little. Seconds are those of the whole script, imports included.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
LIBRARIES = ("torch", "lightning", "transformers", "accelerate")
# How a script of processes of its own is started; the twin of sharded weights too.
STARTED = {"fsdp2_digits.py": (*TORCHRUN, "2")}
# torch 2.13's processes abort now and then at their exit, after all is done and printed.
TRIES = 3


def run(path: Path) -> dict[str, Any]:
    for _ in range(TRIES if path.name in STARTED else 1):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *STARTED.get(path.name, ()), str(path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begin
        if done.returncode == 0:
            return {**outcome(done.stdout), "seconds": seconds}
    raise SystemExit(f"{path}:\n{done.stdout}\n{done.stderr}")


def outcome(printed: str) -> dict[str, Any]:
    """The result, and the samples that were trained on, where the script says how many.

    >>> outcome("test accuracy 94.44% after 300 samples\\n")
    {'result': '94.44%', 'samples': 300}
    >>> outcome("{'cpfast/kept': '1'}\\n{'cpfast/kept': '0.5'}\\n3.9 bits\\n")
    {'result': '3.9 bits', 'kept': 0.75}
    """
    last = printed.strip().splitlines()[-1]
    found = re.search(r"([\d.]+%) after (\d+) samples", printed)
    if found:
        return {"result": found[1], "samples": int(found[2])}
    kept = [float(share) for share in re.findall(r"'cpfast/kept': '([\d.]+)'", printed)]
    return {"result": last, **({"kept": sum(kept) / len(kept)} if kept else {})}


def share(plain: dict[str, Any], ours: dict[str, Any]) -> float:
    """Of the twin's samples."""
    return ours["kept"] if "kept" in ours else ours["samples"] / plain["samples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    print("| example | without cpfast | with it | of the samples |\n|---|---|---|---:|")
    for path in sorted(EXAMPLES.glob("*.py")):
        plain, ours = run(EXAMPLES / "plain" / path.name), run(path)
        found[path.name] = {"plain": plain, "cpfast": ours, "samples": share(plain, ours)}
        print(
            f"| {path.stem} | {plain['result']} | {ours['result']} | {share(plain, ours):.0%} |",
            flush=True,
        )
    if options.out is not None:
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        machine = {"processor": platform.processor(), "cores": os.cpu_count(), **versions}
        options.out.write_text(
            json.dumps({"machine": machine, "examples": found}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
