"""Loss, scores and gradient, against the loss and gradient alone and against eager scoring."""

import pytest
import rivals
import torch
import torch.nn.functional as F
from harness import close, input_sets, too_big
from workloads import logits

from cpfast import ops, reference

SAMPLES = 50_000
SHAPES = [(512, 10), (1024, 1000), (256, 32000), (8192, 32000), (4096, 128256)]
F32, BF16 = torch.float32, torch.bfloat16
# What targets are set for comes first: on a GPU time may end before the list does.
CASES = [*((s, F32) for s in SHAPES[:3]), *((s, BF16) for s in SHAPES[3:])]
CASES += [*((s, BF16) for s in SHAPES[:3]), *((s, F32) for s in SHAPES[3:])]


def cpfast(gradient):
    def loss(x, y, scores, index):
        # A leaf is not written over; its view is.
        logits = x.view_as(x) if gradient == "inplace" else x
        return ops.scored_cross_entropy(
            logits, y, reduction="mean", gradient=gradient, table=scores, index=index
        ).loss

    return loss


def plain(x, y, *_):
    return F.cross_entropy(x, y)


def losses_recorded(x, y, scores, index):
    """InfoBatch's scores: the losses themselves."""
    losses = F.cross_entropy(x, y, reduction="none")
    scores[index] = losses.detach().float()
    return losses.mean()


def el2n_recorded(x, y, scores, index):
    losses = F.cross_entropy(x, y, reduction="none")
    with torch.no_grad():
        errors = x.float().softmax(1)
        errors[torch.arange(len(y), device=y.device), y] -= 1
        scores[index] = torch.linalg.vector_norm(errors, dim=1)
    return losses.mean()


def twin(x, y, scores, index):
    scored = reference.scored_cross_entropy(x, y)
    reference.record_scores(scores, index, scored.loss)
    return scored.loss.mean()


def forward_and_backward(loss):
    def gradient(x, *others):
        return torch.autograd.grad(loss(x, *others), x)[0]

    return gradient


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def bench_scored_cross_entropy(race, device, shape, dtype):
    rows, classes = shape
    size = rows * classes * dtype.itemsize
    large = rows * classes > 1 << 26
    if device == "cpu" and (shape == SHAPES[-1] or (large and dtype == F32)):
        pytest.skip(f"on the CPU {SHAPES[-2]} in bfloat16 is the largest, for time")
    # Logits, their gradient, and float32 probabilities with copies of them in the eager forms.
    reason = too_big(3 * size + 3 * 4 * rows * classes, device)
    if reason:
        pytest.skip(reason)

    def make(seed):
        x, y = logits(shape, device, dtype, seed)
        g = torch.Generator(device).manual_seed(seed)
        index = torch.randperm(SAMPLES, generator=g, device=device)[:rows]
        return x, y, torch.zeros(SAMPLES, device=device), index

    contenders = {
        "cpfast": cpfast("forward"),
        "cpfast, gradient in the backward": cpfast("backward"),
        "cpfast, gradient over the logits": cpfast("inplace"),
        "F.cross_entropy, no scores": plain,
        "F.cross_entropy, losses recorded": losses_recorded,
        "F.cross_entropy and EL2N": el2n_recorded,
        "torch.compile of F.cross_entropy, no scores": rivals.compiled(plain),
    }
    if not (large and device == "cpu"):
        contenders["torch.compile of F.cross_entropy and EL2N"] = rivals.compiled(el2n_recorded)
        contenders["twin"] = twin
    if device == "cuda":
        for name, loss in rivals.cross_entropies(device).items():
            contenders[f"{name}, no scores"] = (
                loss if isinstance(loss, str) else lambda x, y, *_, loss=loss: loss(x, y)
            )
    # Read once, and the gradient written once.
    race(
        "scored_cross_entropy",
        f"{shape} {str(dtype).removeprefix('torch.')}, forward + backward",
        {n: c if isinstance(c, str) else forward_and_backward(c) for n, c in contenders.items()},
        input_sets(make, size, device),
        2 * size,
        overwrites={"cpfast, gradient over the logits", "Liger, no scores"},
        # Gradients are of the order of 1 / rows.
        agree=close(0.02, 2e-3 / rows) if dtype == F32 else close(0.05, 0.02 / rows),
    )
