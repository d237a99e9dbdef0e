"""Loss, scores and gradient, against the twin and against the loss and gradient alone."""

import pytest
import torch
import torch.nn.functional as F

from cpfast import ops, reference

SHAPES = [(512, 10), (1024, 1000), (256, 32000)]
CONTENDERS = {
    "cpfast": lambda x, y: ops.scored_cross_entropy(x, y).loss,
    "twin": lambda x, y: reference.scored_cross_entropy(x, y).loss,
    "F.cross_entropy, no scores": lambda x, y: F.cross_entropy(x, y, reduction="none"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("contender", CONTENDERS)
def bench_scored_cross_entropy(race, shape, dtype, contender):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=g).to(dtype).requires_grad_()
    target = torch.randint(shape[1], shape[:1], generator=g)

    def forward_and_backward():
        loss = CONTENDERS[contender](logits, target)
        return torch.autograd.grad(loss.mean(), logits)

    # The logits are read twice, and their gradient is written.
    race(
        "scored_cross_entropy",
        f"{shape} {str(dtype).removeprefix('torch.')}, forward + backward",
        contender,
        forward_and_backward,
        3 * logits.numel() * logits.element_size(),
    )
