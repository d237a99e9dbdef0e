"""Shapes of real models, and random inputs of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = list[tuple[int, ...]]


def resnet56_shapes() -> Shapes:
    """Kernels of the CIFAR ResNet-56: 0.85 M parameters in 58 layers."""
    shapes: Shapes = [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 18
    for width in (32, 64):
        shapes += [(width, width // 2, 3, 3), (width, width // 2, 1, 1)]
        shapes += [(width, width, 3, 3)] * 17
    return [*shapes, (10, 64)]


def resnet50_shapes() -> Shapes:
    """Kernels of the ImageNet ResNet-50: 25.5 M parameters in 54 layers."""
    shapes: Shapes = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return [*shapes, (1000, 2048)]


def llama_shapes(
    width: int, blocks: int, inner: int, keys: int, vocabulary: int, tied: bool
) -> Shapes:
    """Matrices of a Llama: embedding, then q, k, v, o, gate, up and down of each block."""
    block = [(width, width), (keys, width), (keys, width), (width, width)]
    block += [(inner, width), (inner, width), (width, inner)]
    return [(vocabulary, width)] * (1 if tied else 2) + block * blocks


MODELS = {
    "ResNet-56": resnet56_shapes(),
    "ResNet-50": resnet50_shapes(),
    "268 M": [(4096, 4096)] * 16,
    "Llama 1.2 B": llama_shapes(2048, 16, 8192, 512, 128256, tied=True),
    "Llama 6.7 B": llama_shapes(4096, 32, 11008, 4096, 32000, tied=False),
}


def numel(shapes: Sequence[Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def random_pool(device: str, seed: int) -> Tensor:
    g = torch.Generator(device).manual_seed(seed)
    return torch.randn(1 << 22, generator=g, device=device)


def fill(target: Tensor, pool: Tensor, start: int) -> None:
    """Fills a tensor with a pool's numbers, from `start` on and around: quick at any size."""
    flat = target.view(-1)
    start %= len(pool)
    for begin in range(-start, len(flat), len(pool)):
        left, right = max(begin, 0), min(begin + len(pool), len(flat))
        flat[left:right] = pool[left - begin : right - begin]


def weights(
    shapes: Shapes, device: str, dtypes: tuple[torch.dtype, torch.dtype], seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights near their random reference, each layer's numbers its own: (params, refs)."""
    pool, noise = random_pool(device, 2 * seed), 0.01 * random_pool(device, 2 * seed + 1)
    moved = pool + noise
    params, refs = ([torch.empty(s, device=device, dtype=d) for s in shapes] for d in dtypes)
    for layer, (w, w0) in enumerate(zip(params, refs, strict=True)):
        fill(w, moved, 7919 * layer)
        fill(w0, pool, 7919 * layer)
    return params, refs


def logits(
    shape: tuple[int, int], device: str, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits [N, C] that want a gradient, and targets [N]."""
    x = torch.empty(shape, device=device, dtype=dtype)
    fill(x, random_pool(device, seed), 0)
    g = torch.Generator(device).manual_seed(seed)
    return x.requires_grad_(), torch.randint(shape[1], shape[:1], generator=g, device=device)
