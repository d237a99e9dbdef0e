"""All layers in one call, against the twin, the paper's way (scipy per layer) and torch's."""

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import distance

from cpfast import ops, reference


def resnet56_shapes():
    """Kernels of the CIFAR ResNet-56: 0.85 M parameters in 58 layers."""
    shapes = [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 18
    for width in (32, 64):
        shapes += [(width, width // 2, 3, 3), (width, width // 2, 1, 1)]
        shapes += [(width, width, 3, 3)] * 17
    return [*shapes, (10, 64)]


def resnet50_shapes():
    """Kernels of the ImageNet ResNet-50: 25.5 M parameters in 54 layers."""
    shapes, channels = [(64, 3, 7, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return [*shapes, (1000, 2048)]


MODELS = {"ResNet-56": resnet56_shapes(), "ResNet-50": resnet50_shapes()}


@pytest.fixture(scope="module", params=MODELS)
def layers(request):
    g = torch.Generator().manual_seed(0)
    refs = [torch.randn(shape, generator=g) for shape in MODELS[request.param]]
    params = [r + 0.01 * torch.randn(r.shape, generator=g) for r in refs]
    return request.param, params, refs, sum(8 * p.numel() for p in params)


ROTATION = {
    "cpfast": ops.layer_rotation,
    "twin": reference.layer_rotation,
    "scipy per layer": lambda params, refs: [
        distance.cosine(w.numpy().ravel(), w0.numpy().ravel())
        for w, w0 in zip(params, refs, strict=True)
    ],
    "F.cosine_similarity per layer": lambda params, refs: torch.stack(
        [
            1 - F.cosine_similarity(w.flatten(), w0.flatten(), dim=0)
            for w, w0 in zip(params, refs, strict=True)
        ]
    ),
    "torch foreach": lambda params, refs: foreach_rotation(params, refs),
}
STATISTICS = {"cpfast": ops.layer_statistics, "twin": reference.layer_statistics}


def foreach_rotation(params, refs):
    dots = torch.stack([p.sum() for p in torch._foreach_mul(params, refs)])
    norms = [torch.stack(torch._foreach_norm(tensors)) for tensors in (params, refs)]
    return 1 - dots / (norms[0] * norms[1])


@pytest.mark.parametrize("contender", ROTATION)
def bench_layer_rotation(race, layers, contender):
    case, params, refs, size = layers
    race(
        "layer_rotation",
        case,
        contender,
        lambda: ROTATION[contender](params, refs),
        size,
    )


@pytest.mark.parametrize("contender", STATISTICS)
def bench_layer_statistics(race, layers, contender):
    case, params, refs, size = layers
    race(
        "layer_statistics",
        case,
        contender,
        lambda: STATISTICS[contender](params, refs),
        size,
    )
