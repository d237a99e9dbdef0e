"""How much memory is free, and what of it data may take."""

from __future__ import annotations

import os
from pathlib import Path

from cpfast.train import ranks

SHARE = 0.5  # of the free memory, for all processes of this machine: models take the rest
CGROUP = Path("/sys/fs/cgroup")


def fits(size: int) -> bool:
    """Whether so many bytes are within `SHARE`, by each process of the machine."""
    return size * ranks.on_this_machine() <= SHARE * free()


def free() -> float:
    """Bytes that can be had without swapping, under the container's limit where there is one."""
    return min(_of_machine(), _of_container())


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux: all that there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_container() -> float:
    """Under cgroups' second version; infinite without a limit."""
    try:
        most, used = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return max(0, int(most) - int(used))
    except (OSError, ValueError):  # no such file, or "max"
        return float("inf")
