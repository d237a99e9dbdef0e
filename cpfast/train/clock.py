"""Seconds of an epoch by part, without stalling the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the time of named parts.

    On the CPU by the wall clock; on CUDA by events on the device's current stream, which are only
    read in `read`, so that no step waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._apart = 0.0
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self._device.type == "cuda":
            # The stream is named, because the current device may be another.
            stream = torch.cuda.current_stream(self._device)
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record(stream)
            yield
            after.record(stream)
            self._events.append((name, before, after))
        else:
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start

    @contextmanager
    def whole(self, name: str) -> Iterator[None]:
        """Synchronised wall time, for a part long enough to wait for."""
        self.synchronize()
        start, apart = time.perf_counter(), self._apart
        yield
        self.synchronize()
        self._seconds[name] += time.perf_counter() - start - (self._apart - apart)

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """As `whole`, and not part of the whole around it."""
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        seconds = time.perf_counter() - start
        self._seconds[name] += seconds
        self._apart += seconds

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading."""
        self.synchronize()
        for name, before, after in self._events:
            self._seconds[name] += before.elapsed_time(after) / 1000
        self._events.clear()
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds
