"""What a run sets for its whole process: threads, memory that is kept, determinism."""

from __future__ import annotations

import ctypes
import sys

import torch

from cpfast.train.config import Config

# Of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_THRESHOLDS = 1 << 30, 32 << 20  # the second is the most that older versions take
_NEVER = 2**31 - 1


def prepare(config: Config) -> None:
    """To be called before the first step."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_memory()


def repeat_to_the_bit() -> None:
    """Have convolutions on CUDA add in a fixed order, by algorithms that no timing chooses."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def keep_memory() -> None:
    """Have glibc keep freed memory, where there is one.

    A step on the CPU frees all of its activations. By default they go back to the system, and the
    next step's come as fresh pages, which the kernel clears: that took 13 % of the processor's
    time of ResNet-8 in float32, batch of 128, one thread.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        any(mallopt(_MMAP_THRESHOLD, size) for size in _THRESHOLDS)
        mallopt(_TRIM_THRESHOLD, _NEVER)
