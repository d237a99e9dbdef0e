"""What F.cross_entropy takes beside classes of rows: distributions, images, weights of classes."""

import pytest
import torch
import torch.nn.functional as F
from harness import close, input_sets, too_big

from cpfast import ops, reference

SAMPLES = 50_000
CASES = {
    "distributions": [(512, 10), (4096, 10), (1024, 1000), (256, 32000)],
    "class weights, smoothed": [(512, 10), (4096, 10), (1024, 1000)],
    "images": [(8, 21, 128, 128), (4, 150, 128, 128)],
}


def cpfast(kind, gradient, module=ops):
    def loss(x, y, class_weight, scores, index):
        options = {"gradient": gradient, "table": scores, "index": index}
        if module is ops and kind == "images":
            options["class_dim"] = 1
        elif kind == "images":
            x = x.movedim(1, -1).flatten(1, 2)
            y = y.flatten(1)
        if kind == "class weights, smoothed":
            options |= {"class_weight": class_weight, "label_smoothing": 0.1}
        return module.scored_cross_entropy(x, y, reduction="mean", **options).loss

    return loss


def options_of(kind, class_weight):
    if kind == "class weights, smoothed":
        return {"weight": class_weight, "label_smoothing": 0.1}
    return {}


def plain(kind):
    def loss(x, y, class_weight, *_):
        return F.cross_entropy(x, y, **options_of(kind, class_weight))

    return loss


def recorded(kind):
    def loss(x, y, class_weight, scores, index):
        losses = F.cross_entropy(x, y, reduction="none", **options_of(kind, class_weight))
        scores[index] = losses.detach().flatten(1).mean(1) if kind == "images" else losses.detach()
        total = class_weight[y].sum() if kind == "class weights, smoothed" else losses.numel()
        return losses.sum() / total

    return loss


def forward_and_backward(loss):
    def gradient(x, *others):
        return torch.autograd.grad(loss(x, *others), x)[0]

    return gradient


@pytest.mark.parametrize(
    ("kind", "shape"), [(kind, shape) for kind, shapes in CASES.items() for shape in shapes]
)
def bench_loss_arguments(race, device, kind, shape):
    count = torch.Size(shape).numel()
    reason = too_big(8 * 4 * count, device)
    if reason:
        pytest.skip(reason)

    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        x = 3 * torch.randn(shape, generator=g, device=device)
        if kind == "distributions":
            y = torch.randn(shape, generator=g, device=device).softmax(1)
        else:
            y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=g, device=device)
        class_weight = torch.rand(shape[1], generator=g, device=device) + 0.5
        index = torch.randperm(SAMPLES, generator=g, device=device)[: shape[0]]
        return x.requires_grad_(), y, class_weight, torch.zeros(SAMPLES, device=device), index

    contenders = {
        "cpfast": cpfast(kind, "forward"),
        "cpfast, gradient in the backward": cpfast(kind, "backward"),
        "F.cross_entropy, no scores": plain(kind),
        "F.cross_entropy, losses recorded": recorded(kind),
        "twin": cpfast(kind, "forward", reference),
    }
    read = 4 * count * (2 if kind == "distributions" else 1)
    race(
        "scored_cross_entropy",
        f"{kind} {shape} float32, forward + backward",
        {name: forward_and_backward(loss) for name, loss in contenders.items()},
        input_sets(make, read, device),
        read + 4 * count,
        agree=close(0.02, 2e-3 * shape[1] / count),
    )
