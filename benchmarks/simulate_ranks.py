"""What a pruner of many samples needs on each of many ranks, from what one process measures here.

    python -m benchmarks.simulate_ranks [--samples 1e9] [--ranks 1024] [--out FILE]

Measured, at --measured samples and taken to grow in proportion: the time of a plan and of what a
sync does beside its collective, and the bytes of a pruner. Computed: the time of the collective,
an all-reduce in a ring, 2 (R - 1) / R times its bytes over the slowest link's bandwidth, which is
given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import cpfast

BANDWIDTHS = {"100 Gbit/s": 12.5e9, "400 Gbit/s": 50e9}
ROUNDS = 5


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors(v)]
    return []


def measure(samples: int) -> dict[str, float]:
    """Seconds and bytes a sample, of one process: the least of several rounds."""
    pruner = cpfast.DataPruner(samples, 100, "infobatch", anneal=1.0, strict=None)
    pruner.plan(0)
    losses = torch.rand(samples)
    everyone = torch.arange(samples)
    pruner.update(everyone, losses)
    plans, merges = [], []
    for epoch in range(1, ROUNDS + 1):
        begin = time.perf_counter()
        plan = pruner.prepare(epoch)
        first = plan.batch(0, 256)
        plans.append(time.perf_counter() - begin)
        pruner.update(everyone, losses)
        # what sync() does before and after its collective, as it does it under torch.distributed
        touched = torch.ones(samples, dtype=torch.bool)
        begin = time.perf_counter()
        merged = torch.cat([torch.where(touched, pruner.scores, 0.0), touched.float()])
        total, ranks = merged.view(-1, samples)
        pruner.scores.copy_(torch.where(ranks > 0, total / ranks, pruner.scores))
        merges.append(time.perf_counter() - begin)
    held = sum(t.nbytes for t in tensors(vars(pruner))) + everyone.nbytes
    assert len(first) == 256
    return {
        "plan_seconds": min(plans) / samples,
        "merge_seconds": min(merges) / samples,
        "bytes": held / samples,
        "sync_bytes": 8.0,
    }


def simulate(one: dict[str, float], samples: float, ranks: int) -> dict[str, Any]:
    """Of each rank, in an epoch."""
    ring = 2 * (ranks - 1) / ranks * one["sync_bytes"] * samples
    return {
        "samples": samples,
        "ranks": ranks,
        "memory_bytes": one["bytes"] * samples,
        "sync_buffer_bytes": one["sync_bytes"] * samples,
        "plan_seconds": one["plan_seconds"] * samples,
        "merge_seconds": one["merge_seconds"] * samples,
        "collective_seconds": {name: ring / speed for name, speed in BANDWIDTHS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=float, default=1e9)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--measured", type=float, default=2e7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    one = measure(int(options.measured))
    result = {
        "measured": {"samples": options.measured, **one},
        "simulated": [
            simulate(one, samples, options.ranks) for samples in (1e7, 1e8, options.samples)
        ],
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
