"""Times contenders against each other: round-robin, on rotating inputs, by the device's own clock.

Contenders take turns within every round, so a machine that slows down slows all of them, and the
ratio of a round is of neighbours in time.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import pathlib
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.profiler

# seconds: a block of calls between two readings of the clock, all rounds of a case, and the
# longest single call of a rival that is still waited for.
BLOCK = 2e-3
BUDGET = {"cpu": 4.0, "cuda": 1.0}
PATIENCE = {"cpu": 6.0, "cuda": 2.0}
ROUNDS = (5, 200)
SLOW = 2.0  # rounds of more seconds are three
# Below this an event pair measures launches; calls are then timed as replays of a CUDA graph.
LAUNCH_BOUND = 20e-6


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def free_bytes(device: str) -> int:
    """What a new tensor could take: on the CPU the page cache counts as free."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    try:
        fields = pathlib.Path("/proc/meminfo").read_text().split()
        return int(fields[fields.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def too_big(needed: float, device: str) -> str:
    """Why a case of `needed` bytes cannot run on the device, or nothing. A tenth is left free."""
    free = free_bytes(device)
    if needed <= 0.9 * free:
        return ""
    return f"needs {needed / 1e9:.3g} GB on {device}, {free / 1e9:.3g} GB are free"


def cache_bytes(device: str) -> int:
    """The last cache before memory: L2 on CUDA; L3 on the CPU, or 32 MiB where it is not told."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    try:
        size = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 << 20


def input_sets(make: Callable[[int], tuple[Any, ...]], size: int, device: str) -> list[Any]:
    """Inputs of `size` bytes, made as often as it takes to be four caches; small ones once.

    What fits half the cache stays in it between a training's steps too.
    """
    cache = cache_bytes(device)
    return [make(seed) for seed in range(1 if size < cache / 2 else -(-4 * cache // size))]


def measured_bandwidth(device: str, size: int | None = None) -> dict[str, float]:
    """GB/s of a copy (bytes read plus bytes written) and of a sum (bytes read): each the best."""
    elements = (size or (1 << 30 if device == "cuda" else 256 << 20)) // 4
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    moved = {"copy": 8 * elements, "sum": 4 * elements}
    calls = {"copy": lambda: target.copy_(source), "sum": source.sum}
    rates = {}
    for name, call in calls.items():
        timed = Contender(call, [()], device)
        rates[name] = moved[name] / min(timed.block() for _ in range(9)) / 1e9
    return rates


class Contender:
    """One function over rotating inputs; `block()` runs `calls` of them: seconds a call.

    Args:
        overwrites: the function writes over its first argument. It then works on copies, restored
            before each block, outside the clock.
        graphs: on CUDA, replay a graph of calls where launches would be what is timed.
        aim: seconds that a block should last.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        sets: list[tuple[Any, ...]],
        device: str,
        turns: Iterator[tuple[Any, ...]] | None = None,
        overwrites: bool = False,
        graphs: bool = True,
        aim: float = BLOCK,
    ) -> None:
        self.function, self.sets, self.device = function, sets, device
        self.turns = turns or itertools.cycle(sets)
        self.overwrites, self.graphs, self.aim = overwrites, graphs, aim
        self.clock = "events" if device == "cuda" else "wall"
        self.calls = 1
        self.host: float | None = None
        self.eager: float | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captured: list[tuple[Any, ...]] = []
        self.scratch: list[tuple[Any, ...]] = []

    def _fresh(self) -> tuple[Any, ...]:
        first, *others = self.sets[0]
        return (_copy(first), *others)

    def once(self) -> Any:
        return self.function(*(self._fresh() if self.overwrites else self.sets[0]))

    def arguments(self) -> list[tuple[Any, ...]]:
        """The next block's, untimed."""
        if not self.overwrites:
            return self.captured or list(itertools.islice(self.turns, self.calls))
        while len(self.scratch) < self.calls:
            self.scratch.append(self._fresh())
        with torch.no_grad():
            for written, original in zip(self.scratch, itertools.cycle(self.sets), strict=False):
                written[0].copy_(original[0])
        return self.scratch[: self.calls]

    def calibrate(self, once: float) -> None:
        """Chooses the calls of a block by what one takes, and on CUDA the clock."""
        self.calls = max(1, min(1000, round(self.aim / once)))
        if self.overwrites:
            room = 4 * cache_bytes(self.device) // max(1, _size(self.sets[0][0]))
            self.calls = max(1, min(self.calls, room))
        if self.device == "cuda":
            self.host = self._host_time()
            self.eager = self.block()
            if self.graphs and self.eager < max(LAUNCH_BOUND, 1.2 * self.host):
                self._capture()

    def block(self) -> float:
        arguments = self.arguments()
        if len(arguments) > 1 and self.graph is None and not self.overwrites:
            self.function(*arguments[-1])  # the others' turns have emptied the caches
        if self.device == "cpu":
            start = time.perf_counter()
            for a in arguments:
                self.function(*a)
            return (time.perf_counter() - start) / len(arguments)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        if self.graph is not None:
            self.graph.replay()
        else:
            for a in arguments:
                self.function(*a)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(arguments)

    def _host_time(self) -> float:
        """Seconds that a call keeps the host: the wall time of enqueueing, the device aside."""
        times = []
        for _ in range(5):
            arguments = self.arguments()[:10]
            torch.cuda.synchronize()
            start = time.perf_counter()
            for a in arguments:
                self.function(*a)
            times.append((time.perf_counter() - start) / len(arguments))
            torch.cuda.synchronize()
        return statistics.median(times)

    def _capture(self) -> None:
        """Replays of `calls` calls from here on; a function that synchronises stays on events."""
        calls = self.calls
        self.calls = max(len(self.sets), min(calls, 50))
        arguments = self.arguments()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            # A capture that fails leaves the allocator in disorder: ask before.
            torch.cuda.set_sync_debug_mode("error")
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.function(*arguments[0])
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.set_sync_debug_mode("default")
            with torch.cuda.graph(graph):
                for a in arguments:
                    self.function(*a)
            graph.replay()
            torch.cuda.synchronize()
        except Exception:
            self.calls = calls
            return
        finally:
            torch.cuda.set_sync_debug_mode("default")
        self.graph, self.clock, self.captured = graph, "graph", arguments

    def peak_bytes(self) -> int:
        """The most memory that one call holds beyond its inputs, its outputs included."""
        inputs = self._fresh() if self.overwrites else self.sets[0]
        if self.device == "cpu":
            return cpu_peak_bytes(lambda: self.function(*inputs))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = self.function(*inputs)
        torch.cuda.synchronize()
        del out
        return torch.cuda.max_memory_allocated() - before


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def cpu_peak_bytes(call: Callable[[], Any]) -> int:
    """torch's allocations from the profiler's memory events, plus Python's and numpy's.

    The two peaks are added, though they need not fall together: few calls have both.
    """
    _start_profiler_once()
    tracemalloc.start()
    try:
        with _profile() as profiler:
            out = call()
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del out
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    held = itertools.accumulate(e["args"]["Bytes"] for e in memory)
    # Less than a megabyte of Python is the profiler's own.
    return max(held, default=0) + (python if python > 1 << 20 else 0)


def _profile() -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    return torch.profiler.profile(activities=activities, profile_memory=True)


@functools.cache
def _start_profiler_once() -> None:
    # Its first use imports much, all of which tracemalloc would count, slowly.
    with _profile():
        torch.empty(1)


def close(rtol: float, atol: float) -> Callable[[Any, Any], None]:
    """A check that two contenders computed the same: tensors, arrays or lists of numbers.

    Of large ones every so manieth number, by an odd stride that meets all rows and columns.
    """

    def check(ours: Any, theirs: Any) -> None:
        ours, theirs = (torch.as_tensor(x).detach().flatten() for x in (ours, theirs))
        stride = (len(ours) >> 22) | 1
        ours, theirs = (x[::stride].float() for x in (ours, theirs))
        torch.testing.assert_close(theirs.to(ours.device), ours, rtol=rtol, atol=atol)

    return check


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}" if lines else type(error).__name__


class Race:
    """Contenders of one case: warmed up, checked against each other, calibrated, then timed.

    A value that is a string says why that contender is not here. A rival that raises or takes
    longer than `patience` seconds is left out, with the reason; cpfast's must not. Of one whose
    result differs, that is noted.
    """

    def __init__(
        self,
        contenders: dict[str, Callable[..., Any] | str],
        sets: list[tuple[Any, ...]],
        device: str,
        *,
        overwrites: Iterable[str] = (),
        agree: Callable[[Any, Any], None] | None = None,
        temporaries: dict[str, int] | None = None,
        graphs: bool = True,
        aim: float = BLOCK,
        budget: float | None = None,
        patience: float | None = None,
        brief: bool = False,
    ) -> None:
        self.device = device
        self.patience = PATIENCE[device] if patience is None else patience
        self.left_out: dict[str, str] = {}
        self.differs: dict[str, str] = {}
        self.running: dict[str, Contender] = {}
        self.peak: dict[str, int] = {}
        self.times: dict[str, list[float]] = {}
        self._once: dict[str, float] = {}
        turns = itertools.cycle(sets)
        ours: Any = None
        for name, function in contenders.items():
            reason = function if isinstance(function, str) else ""
            reason = reason or too_big((temporaries or {}).get(name, 0), device)
            if reason:
                self.left_out[name] = reason
                continue
            runner = Contender(function, sets, device, turns, name in overwrites, graphs, aim)
            try:
                out = runner.once()
                if name == "cpfast":
                    ours = out
                elif agree is not None and ours is not None:
                    self._compare(name, agree, ours, out)
                del out
                self._warm(name, runner, brief)
            except Exception as error:
                if name.startswith("cpfast"):
                    raise
                self.left_out[name] = first_line(error)
        del ours
        total = sum(r.block() * r.calls for r in self.running.values() if r.calls > 1)
        total += sum(self._once[n] for n, r in self.running.items() if r.calls == 1)
        budget = BUDGET[device] if budget is None else budget
        self.least = ROUNDS[0] if total < SLOW else 3
        self.rounds = int(max(self.least, min(ROUNDS[1], budget / max(total, 1e-9))))
        self._end = time.perf_counter() + 1.5 * budget
        gc.collect()
        self._order = random.Random(0)

    def _compare(self, name: str, agree: Callable[[Any, Any], None], ours: Any, out: Any) -> None:
        try:
            agree(ours, out)
        except AssertionError as error:
            self.differs[name] = first_line(error)

    def _warm(self, name: str, runner: Contender, brief: bool) -> None:
        once = 0.0
        if not brief:
            once = runner.block()
            if once > self.patience and not name.startswith("cpfast"):
                self.left_out[name] = f"one call took {once:.2g} s"
                return
            if not getattr(runner.function, "elsewhere", False):
                self.peak[name] = runner.peak_bytes()
            if once < runner.aim:
                once = runner.block()
            runner.calibrate(once)
        self.running[name], self.times[name], self._once[name] = runner, [], once

    def round(self) -> None:
        order = list(self.running)
        if len(self.times[order[0]]) >= self.least and time.perf_counter() > self._end:
            return  # the machine has become slower than it was when rounds were planned
        self._order.shuffle(order)
        gc.disable()
        try:
            for name in order:
                self.times[name].append(self.running[name].block())
        finally:
            gc.enable()

    def results(self) -> dict[str, dict[str, Any]]:
        """Per contender: its statistics in seconds a call, and its ratio to cpfast, by rounds."""
        ours = self.times.get("cpfast")
        results = {}
        for name, times in self.times.items():
            runner = self.running[name]
            results[name] = {
                "stats": statistics_of(times, runner.calls),
                "clock": runner.clock,
                "host": runner.host,
                # By events, whichever clock the statistics are of.
                "eager": runner.eager,
                "peak": self.peak.get(name),
            }
            if ours:
                ratios = [t / o for t, o in zip(times, ours, strict=True)]
                results[name]["ratio"] = quartiles(ratios)
        return results


def quartiles(values: list[float]) -> list[float]:
    # quantiles() wants two values.
    points = values if len(values) > 1 else 2 * values
    return [significant(q) for q in statistics.quantiles(points, n=4, method="inclusive")]


def statistics_of(times: list[float], calls: int) -> dict[str, Any]:
    """As pytest-benchmark names them."""
    q1, median, q3 = quartiles(times)
    mean = statistics.fmean(times)
    return {
        "min": significant(min(times)),
        "max": significant(max(times)),
        "mean": significant(mean),
        "stddev": significant(statistics.stdev(times)) if len(times) > 1 else 0,
        "rounds": len(times),
        "median": median,
        "iqr": significant(q3 - q1),
        "q1": q1,
        "q3": q3,
        "ops": significant(1 / mean),
        "total": significant(sum(times) * calls),
        "iterations": calls,
    }


def significant(value: float) -> float:
    return float(f"{value:.6g}")
