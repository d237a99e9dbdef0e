"""Where a comparison ran: what its times depend on beside its settings."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import cpfast

BEGUN = "begun"
KEYS = ("cpfast", "torch", "python", "platform", "cpu", "processors", "gpu", BEGUN)


def describe(device: str) -> dict[str, Any]:
    """Versions and machine, with the time in UTC; no name of a host or a user."""
    cuda = torch.device(device).type == "cuda"
    return {
        "cpfast": cpfast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "processors": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        BEGUN: datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """But for the time."""
    return all(a[key] == b[key] for key in KEYS if key != BEGUN)


def notes(environments: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know of them; the later ones by what has changed."""
    first = environments[0]
    parts = [f"CPU {first['cpu']}, {first['processors']} processors"]
    parts += [f"GPU {first['gpu']}"] if first["gpu"] else []
    parts += [f"{name} {first[name]}" for name in ("cpfast", "torch", "python")]
    told = [f"Begun on {first[BEGUN][:10]}: {'; '.join(parts)}; {first['platform']}."]
    for before, after in pairwise(environments):
        changed = [
            f"{key} {after[key]} (was {before[key]})"
            for key in KEYS
            if key != BEGUN and after[key] != before[key]
        ]
        told.append(
            f"Continued on {after[BEGUN][:10]} with {', '.join(changed)}: compare samples, not "
            "times, of what ran before and after."
        )
    return told


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
