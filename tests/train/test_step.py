"""How a step is executed: what runs on which stream, what is captured, what is replayed."""

from contextlib import contextmanager

import pytest
import torch

from cpfast.train import step
from cpfast.train.step import WARM_UP, Step

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_eager_calls_are_ready_at_once():
    calls = []
    run = Step(lambda: calls.append(run.ready), CPU, graph=False, compiled=False)
    assert run.ready
    run()
    run()
    assert calls == [True, True]


def test_calls_that_may_compile_are_told_apart():
    calls = []
    run = Step(lambda: calls.append(1), CPU, graph=False, compiled=True)
    ready = []
    for _ in range(WARM_UP + 3):
        ready.append(run.ready)
        run()
    assert len(calls) == WARM_UP + 3
    assert ready == [False] * (WARM_UP + 1) + [True] * 2


@pytest.fixture
def fake_cuda(monkeypatch):
    """What Step asks of torch.cuda, as a log."""
    log = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def context(name):
        log.append(f"begin {name}")
        yield
        log.append(f"end {name}")

    current = Stream("current")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: context(stream.name))
    monkeypatch.setattr(torch.cuda, "device", lambda device: context("device"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: context("capture"))
    return log


def test_a_graph_is_warmed_up_captured_once_and_replayed(fake_cuda):
    run = Step(lambda: fake_cuda.append("step"), CUDA, graph=True, compiled=False)
    side = ["side waits for current", "begin side", "step", "end side", "current waits for side"]
    capture = ["begin device", "begin capture", "step", "end capture", "end device", "replay"]
    ready = []
    for _ in range(WARM_UP + 3):
        ready.append(run.ready)
        run()
    # Capturing executes nothing: as many steps are taken as there were calls.
    assert fake_cuda == side * WARM_UP + capture + ["replay"] * 2
    assert ready == [False] * (WARM_UP + 1) + [True] * 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replays_do_what_calls_do():
    results = []
    for graph in (False, True):
        x, total = torch.zeros((), device="cuda"), torch.zeros((), device="cuda")

        def function(x=x, total=total):
            x.add_(1)
            total.add_(x * x)

        run = Step(function, torch.device("cuda:0"), graph=graph, compiled=False)
        for _ in range(step.WARM_UP + 5):
            run()
        results.append((x.item(), total.item()))
    assert results[0] == results[1]
