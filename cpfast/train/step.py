"""How a training step is executed: call by call, or captured once and replayed as a CUDA graph."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch

# What capture needs to have happened: allocations by libraries, the optimizer's state, compilation.
WARM_UP = 3


class Step:
    """Calls `function`, which takes and returns nothing, reads and writes tensors that stay where
    they are, and never waits for the device.

    With `graph`, the first calls run on a stream of their own, the next is captured, and from
    then on each is one launch. Those first calls are training steps like all others.

    Attributes:
        ready: False while a call may compile or capture, which is not to be timed as training.
    """

    def __init__(
        self, function: Callable[[], None], device: torch.device, graph: bool, compiled: bool
    ) -> None:
        self._function = function
        self._device = device
        self._to_capture = graph
        self._calls = 0
        self._warm_up = WARM_UP if graph or compiled else 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._side: torch.cuda.Stream | None = None

    @property
    def ready(self) -> bool:
        return self._calls > self._warm_up or self._warm_up == 0

    def __call__(self) -> None:
        self._calls += 1
        if self._graph is not None:
            self._graph.replay()
        elif not self._to_capture:
            self._function()
        elif self._calls <= self._warm_up:
            self._on_side_stream()
        else:
            self._graph = self._capture()
            self._graph.replay()

    def _on_side_stream(self) -> None:
        current = torch.cuda.current_stream(self._device)
        self._side = self._side or torch.cuda.Stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side), warnings.catch_warnings():
            # "capturable=True ... can impair performance": these few steps alone
            warnings.filterwarnings("ignore", message=".*capturable")
            self._function()
        current.wait_stream(self._side)

    def _capture(self) -> torch.cuda.CUDAGraph:
        gc.collect()  # graphs of earlier runs, which hold memory; and none is to go meanwhile
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            self._function()
        return graph
