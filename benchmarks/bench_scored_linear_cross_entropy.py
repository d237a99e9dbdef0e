"""A language model's last layer with its loss, forward and backward: time, and the most memory."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from harness import close, too_big

import cpfast

# rows, width, vocabulary
F32, BF16 = torch.float32, torch.bfloat16
SHAPES = [(2048, 256, 32000), (4096, 768, 50257), (8192, 4096, 128256)]
CASES = [
    (SHAPES[0], F32),
    (SHAPES[1], F32),
    (SHAPES[0], BF16),
    (SHAPES[1], BF16),
    (SHAPES[2], BF16),
]
# What grows with the vocabulary, and with the rows.
GROWTH = [((1024, 256, v), F32) for v in (8000, 16000, 64000)]
GROWTH += [((n, 256, 16000), F32) for n in (512, 2048, 4096)]


def cpfast_scored(hidden, weight, target, factors):
    each = torch.empty(len(hidden), device=hidden.device)
    loss = cpfast.ops.scored_linear_cross_entropy(
        hidden, weight, target, sample_weight=factors, reduction="sum",
        table=each, index=torch.arange(len(hidden), device=hidden.device),
    ).loss  # fmt: skip
    return loss


def cpfast_whole(hidden, weight, target, factors):
    """The whole logits, which the gradient is written over."""
    return cpfast.ops.scored_cross_entropy(
        F.linear(hidden, weight), target, weight=factors[:, None], reduction="sum",
        gradient="inplace",
    ).loss  # fmt: skip


def whole(hidden, weight, target, factors):
    losses = F.cross_entropy(F.linear(hidden, weight).float(), target, reduction="none")
    return (losses * factors).sum()


def chunked(hidden, weight, target, factors, rows=256):
    """Chunks that are formed again in the backward pass."""

    def part(h, y, f):
        return whole(h, weight, y, f)

    total = torch.zeros((), device=hidden.device)
    for at in range(0, len(hidden), rows):
        own = slice(at, at + rows)
        total = total + torch.utils.checkpoint.checkpoint(
            part, hidden[own], target[own], factors[own], use_reentrant=False
        )
    return total


def of_torch(reduction, rows):
    """torch's own, from 2.13 on: per-row losses, or a mean without weights."""
    if not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy"
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(batch_chunk_size=rows)

    def loss(hidden, weight, target, factors):
        losses = F.linear_cross_entropy(
            hidden, weight, target, reduction=reduction, options=options
        )
        return (losses * factors).sum() if reduction == "none" else losses * factors.sum()

    return loss


def liger(device):
    if device != "cuda":
        return "Liger-Kernel is written in Triton, for a GPU"
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError as error:
        return str(error)
    return lambda h, w, y, f: liger_fused_linear_cross_entropy(h, w, y) * f.sum()


def forward_and_backward(loss):
    def gradients(hidden, weight, target, factors):
        return torch.autograd.grad(loss(hidden, weight, target, factors), (hidden, weight))

    return gradients


def both(check):
    def checked(ours, theirs):
        for own, other in zip(ours, theirs, strict=True):
            check(own, other)

    return checked


@pytest.mark.parametrize(("shape", "dtype"), [*CASES, *GROWTH], ids=str)
def bench_scored_linear_cross_entropy(race, device, shape, dtype):
    rows, width, classes = shape
    if device == "cpu" and shape == SHAPES[-1]:
        pytest.skip("on the CPU minutes a call")
    # The losses and gradients of whole logits in float32, beside logits and their gradient.
    reason = too_big(rows * classes * (3 * 4 + 2 * dtype.itemsize), device)
    if reason:
        pytest.skip(reason)
    g = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, generator=g, device=device).to(dtype).requires_grad_()
    weight = torch.randn(classes, width, generator=g, device=device).mul_(0.05).to(dtype)
    target = torch.randint(classes, (rows,), generator=g, device=device)
    # A uniform one, so that means can be compared.
    factors = torch.full((rows,), 1 / rows, device=device)
    contenders = {
        "cpfast": cpfast_scored,
        "cpfast, whole logits": cpfast_whole,
        "F.linear and F.cross_entropy": whole,
        "chunks of 256, formed again": chunked,
    }
    for reduction in ("none", "mean"):
        for size in (256, 512):
            name = f"F.linear_cross_entropy, {reduction}, chunks of {size}"
            contenders[name] = of_torch(reduction, size)
    contenders["Liger, mean"] = liger(device)
    race(
        "scored_linear_cross_entropy",
        f"{shape} {str(dtype).removeprefix('torch.')}, forward + backward",
        {n: c if isinstance(c, str) else forward_and_backward(c) for n, c in contenders.items()},
        [(hidden, weight.requires_grad_(), target, factors)],
        None,
        agree=both(close(0.02, 1e-2 / rows) if dtype == F32 else close(0.1, 0.1 / rows)),
    )


# As `cpfast train` has them on text: sequences, tokens, width, and how many different tokens.
VOCABULARIES = (56, 96, 256, 512, 1000, 4096)
TEXT = [(32, 128, 192, v) for v in VOCABULARIES]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", TEXT, ids=str)
def bench_last_layer(race, device, shape, dtype):
    """Of a small vocabulary: whether chunks, or whole logits, which fit."""
    sequences, tokens, width, classes = shape
    g = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(sequences, tokens, width, generator=g, device=device).requires_grad_()
    weight = torch.randn(classes, width, generator=g, device=device).mul_(0.05).requires_grad_()
    bias = torch.zeros(classes, device=device).requires_grad_()
    target = torch.randint(classes, (sequences, tokens), generator=g, device=device)
    index, ones = torch.arange(sequences, device=device), torch.ones(sequences, device=device)
    pruner = cpfast.DataPruner(sequences, 1, "random", device=device, strict=None)

    def gradients(loss):
        return torch.autograd.grad(loss, (hidden, weight, bias))

    def cast():
        return torch.autocast(device, dtype, enabled=dtype != F32)

    def chunks():
        with cast():
            loss = pruner.linear_loss(hidden, weight, target, index, weight=ones, bias=bias)
        return gradients(loss)

    def logits():
        with cast():
            whole = F.linear(hidden, weight, bias)
        return gradients(pruner.loss(whole, target, index, weight=ones))

    race(
        "last layer",
        f"{shape} {str(dtype).removeprefix('torch.')}, forward + backward",
        {"cpfast": chunks, "cpfast, whole logits": logits},
        [()],
        None,
        agree=both(close(0.02, 1e-6) if dtype == F32 else close(0.1, 1e-4)),
    )


@pytest.mark.parametrize("shape", [(32, 128, 192, 96), (8, 256, 256, 32000)], ids=str)
def bench_tokens(race, device, shape):
    """The last layer with its loss, of all tokens and of 60 % that are chosen in the call."""
    sequences, tokens, width, classes = shape
    g = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(sequences, tokens, width, generator=g, device=device).requires_grad_()
    weight = torch.randn(classes, width, generator=g, device=device).mul_(0.05).requires_grad_()
    target = torch.randint(classes, (sequences, tokens), generator=g, device=device)
    index = torch.arange(sequences, device=device)
    losses = torch.rand(sequences, tokens, generator=g, device=device)
    pruners = {
        name: cpfast.DataPruner(
            sequences, 1, name, 0.6, anneal=1.0, device=device, strict=None, **options
        )
        for name, options in (("random", {}), ("tokens", {"reference": losses}))
    }
    for pruner in pruners.values():
        pruner.plan(0)

    def chunks(name):
        loss = pruners[name].linear_loss(hidden, weight, target, index)
        return torch.autograd.grad(loss, (hidden, weight))

    def logits(name):
        loss = pruners[name].loss(F.linear(hidden, weight), target, index)
        return torch.autograd.grad(loss, (hidden, weight))

    race(
        "token selection",
        f"{shape}, forward + backward",
        {
            "cpfast": lambda: chunks("tokens"),
            "all tokens": lambda: chunks("random"),
            "whole logits": lambda: logits("tokens"),
            "whole logits, all tokens": lambda: logits("random"),
        },
        [()],
        None,
    )
