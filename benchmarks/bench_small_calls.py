"""What a call costs of a small batch, where its numbers are next to nothing: on a quiet machine,
and with a neighbour that holds one of the cores, as workers of a DataLoader do."""

import contextlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from harness import input_sets
from workloads import resnet56_shapes

import cpfast
from cpfast import ops

SAMPLES = 50_000
BATCH = 128


@contextlib.contextmanager
def neighbour(busy):
    """A process that holds a core for as long."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def batch(device, classes=10, rows=BATCH):
    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        x = torch.randn(rows, classes, generator=g, device=device).requires_grad_()
        y = torch.randint(classes, (rows,), generator=g, device=device)
        return x, y, torch.randperm(SAMPLES, generator=g, device=device)[:rows]

    return make


def of_loss(device):
    pruner = cpfast.DataPruner(SAMPLES, device=device)
    pruner.plan(0)
    return {
        "cpfast": lambda x, y, i: pruner.loss(x, y, i),
        "F.cross_entropy, no scores": lambda x, y, i: F.cross_entropy(x, y),
    }, input_sets(batch(device), 4 * BATCH * 10, device)


def of_op(device):
    scores = torch.zeros(SAMPLES, device=device)
    return {
        "cpfast": lambda x, y, i: (
            ops.scored_cross_entropy(
                x, y, reduction="mean", gradient="forward", table=scores, index=i
            ).loss
        ),
        "F.cross_entropy, no scores": lambda x, y, i: F.cross_entropy(x, y),
    }, input_sets(batch(device, rows=512), 4 * 512 * 10, device)


def of_record(device):
    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        index = torch.randint(SAMPLES, (BATCH,), generator=g, device=device)
        return torch.zeros(SAMPLES, device=device), index, torch.randn(BATCH, device=device)

    def put(scores, index, values):
        scores[index] = values

    return {"cpfast": ops.record_scores, "scores[index] = values": put}, input_sets(
        make, 16 * BATCH, device
    )


def of_rotation(device):
    params = torch.nn.ParameterList(
        torch.randn(shape, device=device) for shape in resnet56_shapes()
    )
    rotation = cpfast.LayerRotation(params)
    starts = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p in params:
            p.add_(0.01 * torch.randn_like(p))

    @torch.no_grad()
    def eager():
        return torch.stack(
            [
                1 - F.cosine_similarity(p.flatten(), s.flatten(), dim=0)
                for p, s in zip(params, starts, strict=True)
            ]
        )

    return {
        "cpfast": rotation.update,
        "F.cosine_similarity per layer": eager,
    }, [()]


def of_selection(device):
    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        return (torch.rand(1_280_000, generator=g, device=device),)

    def eager(scores):
        below = scores < scores.mean()
        low = below.nonzero()[:, 0]
        chosen = low[torch.randperm(len(low), device=scores.device)[: len(low) // 2]]
        return torch.cat([(~below).nonzero()[:, 0], chosen])

    return {
        "cpfast": lambda scores: ops.select_samples(scores, keep=0.5, seed=0, epoch=1),
        "torch": eager,
    }, input_sets(make, 4 * 1_280_000, device)


CALLS = {
    "DataPruner.loss of 128": of_loss,
    "scored_cross_entropy (512, 10)": of_op,
    "record_scores of 128": of_record,
    "layer_rotation of ResNet-56": of_rotation,
    "select_samples of 1.28 M": of_selection,
}


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
@pytest.mark.parametrize("call", CALLS)
def bench_small_calls(race, device, call, busy):
    if busy and device == "cuda":
        pytest.skip("the neighbour holds a core, and not the GPU")
    contenders, sets = CALLS[call](device)
    with neighbour(busy):
        race(call, "one core held" if busy else "quiet", contenders, sets, None)
