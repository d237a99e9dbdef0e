"""Losses that are means over a sample's elements, against torch's, with and without recording."""

import pytest
import rivals
import torch
import torch.nn.functional as F
from harness import close, input_sets, too_big

from cpfast import ops, reference

SAMPLES = 50_000
SHAPES = [(128, 20), (4096, 1), (512, 1000), (8192, 4000)]
F32, BF16 = torch.float32, torch.bfloat16
CASES = [*((s, F32) for s in SHAPES), (SHAPES[-1], BF16)]
TORCH = {
    "scored_binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "scored_mse": F.mse_loss,
}


def cpfast(op, gradient, module=ops):
    def loss(x, t, weight, scores, index):
        options = {"weight": weight, "gradient": gradient, "table": scores, "index": index}
        return getattr(module, op)(x, t, reduction="mean", **options).loss

    return loss


def plain(op):
    return lambda x, t, *_: TORCH[op](x, t)


def recorded(op):
    """What a pruner does with losses that are not its own: weighted, and put into a table."""

    def loss(x, t, weight, scores, index):
        losses = TORCH[op](x, t, reduction="none").mean(1)
        scores[index] = losses.detach().float()
        return (losses * weight[:, 0]).mean()

    return loss


def forward_and_backward(loss):
    def gradient(x, *others):
        return torch.autograd.grad(loss(x, *others), x)[0]

    return gradient


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("op", TORCH)
def bench_scored_elementwise(race, device, op, shape, dtype):
    rows, elements = shape
    size = rows * elements * dtype.itemsize
    # Operands, the gradient, and float32 copies of what the eager forms keep.
    reason = too_big(3 * size + 5 * 4 * rows * elements, device)
    if reason:
        pytest.skip(reason)

    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        x = 3 * torch.randn(shape, generator=g, device=device)
        t = (torch.rand(shape, generator=g, device=device) < 0.2).to(dtype)
        index = torch.randperm(SAMPLES, generator=g, device=device)[:rows]
        # Ones, so that all of them have one gradient; nobody knows.
        weight = torch.ones(rows, 1, device=device)
        scores = torch.zeros(SAMPLES, device=device)
        return x.to(dtype).requires_grad_(), t, weight, scores, index

    name = TORCH[op].__name__
    contenders = {
        "cpfast": cpfast(op, "forward"),
        "cpfast, gradient in the backward": cpfast(op, "backward"),
        f"{name}, no weights or scores": plain(op),
        f"{name}, weighted and recorded": recorded(op),
        f"torch.compile of {name}, weighted and recorded": rivals.compiled(recorded(op)),
        "twin": cpfast(op, "forward", reference),
    }
    # Both operands read once, and the gradient written once.
    race(
        op,
        f"{shape} {str(dtype).removeprefix('torch.')}, forward + backward",
        {n: c if isinstance(c, str) else forward_and_backward(c) for n, c in contenders.items()},
        input_sets(make, 2 * size, device),
        3 * size,
        # Gradients are of the order of 1 / (rows elements).
        agree=close(1e-3 if dtype == F32 else 0.05, 1e-2 / (rows * elements)),
    )
