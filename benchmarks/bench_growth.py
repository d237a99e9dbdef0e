"""Cost against size: samples, parameters, layers and classes, up to the largest that fits."""

import pytest
import torch
import torch.nn.functional as F
from harness import input_sets, too_big
from workloads import logits, weights

from cpfast import ops

SAMPLES = [10**e for e in range(4, 10)]
PARAMETERS = [10**e for e in range(5, 11)]
LAYERS = [1, 10, 100, 1000, 5000]
CLASSES = [2, 10, 100, 1000, 10_000, 50_257, 200_000]
# Elements in all, where layers and classes share them out: more than the caches hold.
TOTAL = {"cpu": 1 << 24, "cuda": 1 << 27}


def unless_too_big(size, device):
    reason = too_big(size, device)
    if reason:
        pytest.skip(reason)


def grow(race, op, axis, at, contenders, sets, size):
    race(
        f"growth of {op}",
        f"{axis} = {at:,}",
        contenders,
        sets,
        size,
        extra=lambda _: {"axis": axis, "at": at},
        budget=1.0,
    )


def rotation(race, device, axis, at, shapes):
    size = 8 * sum(rows * columns for rows, columns in shapes)
    unless_too_big(1.5 * size, device)

    def make(seed):
        params, refs = weights(shapes, device, (torch.float32, torch.float32), seed)
        plan = ops.LayerPlan(params, refs, torch.stack([r.double().square().sum() for r in refs]))
        return params, refs, plan

    contenders = {
        "cpfast": lambda params, refs, plan: plan.layer_rotation(),
        "cpfast, without a plan": lambda params, refs, plan: ops.layer_rotation(params, refs),
    }
    grow(race, "layer_rotation", axis, at, contenders, input_sets(make, size, device), size)


@pytest.mark.parametrize("parameters", PARAMETERS)
def bench_parameters(race, device, parameters):
    # Ten layers, as even as whole rows of 100 allow.
    rotation(race, device, "parameters", parameters, [(parameters // 1000, 100)] * 10)


@pytest.mark.parametrize("layers", LAYERS)
def bench_layers(race, device, layers):
    rotation(race, device, "layers", layers, [(TOTAL[device] // layers // 32, 32)] * layers)


@pytest.mark.parametrize("samples", SAMPLES)
def bench_samples(race, device, samples):
    unless_too_big(24 * samples, device)

    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        return (torch.rand(samples, generator=g, device=device),)

    contenders = {
        "cpfast": lambda s: ops.select_samples(s, keep=0.5, seed=0, epoch=1, shuffle=True),
        "cpfast, ascending": lambda s: ops.select_samples(s, keep=0.5, seed=0, epoch=1),
    }
    sets, moved = input_sets(make, 4 * samples, device), 8 * samples + 8 * (3 * samples // 4)
    grow(race, "select_samples", "samples", samples, contenders, sets, moved)


@pytest.mark.parametrize("classes", CLASSES)
def bench_classes(race, device, classes):
    rows = TOTAL[device] // 4 // classes
    size = 4 * rows * classes

    def make(seed):
        return logits((rows, classes), device, torch.float32, seed)

    def scored(x, y):
        loss = ops.scored_cross_entropy(x, y, reduction="mean", gradient="forward").loss
        return torch.autograd.grad(loss, x)

    contenders = {
        "cpfast": scored,
        "F.cross_entropy, no scores": lambda x, y: torch.autograd.grad(F.cross_entropy(x, y), x),
    }
    sets = input_sets(make, size, device)
    grow(race, "scored_cross_entropy", "classes", classes, contenders, sets, 2 * size)
