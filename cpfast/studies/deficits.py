"""What may be wrong with what a network is shown: training data made from training data.

Those of Achille, Rovere & Soatto (arXiv 1711.08856). The test data stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from cpfast.train.data import ImageData

BLUR = 4  # times smaller: their 32 pixels are 8


def blur(data: ImageData, seed: int) -> ImageData:
    """As through a cataract: made 4 times smaller, and as large again, bilinearly."""
    images = data.train_images.permute(0, 3, 1, 2).float()
    height, width = images.shape[-2:]
    size = (max(1, height // BLUR), max(1, width // BLUR))
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    large = F.interpolate(small, (height, width), mode="bilinear")
    images = large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return dataclasses.replace(data, train_images=images)


def flip(data: ImageData, seed: int) -> ImageData:
    """Upside down."""
    return dataclasses.replace(data, train_images=data.train_images.flip(1))


def permutation(data: ImageData, seed: int) -> ImageData:
    """Each class under the name of another, by one cycle through all, drawn by the seed."""
    order = torch.from_numpy(_generator(seed).permutation(data.outputs))
    names = torch.empty_like(order)
    names[order] = order.roll(-1)
    labels = names.to(data.train_labels.device)[data.train_labels]
    return dataclasses.replace(data, train_labels=labels)


def noise(data: ImageData, seed: int) -> ImageData:
    """Nothing to see: uniform noise, the same for a sample in every epoch."""
    shape = tuple(data.train_images.shape)
    images = torch.from_numpy(_generator(seed).integers(256, size=shape, dtype=np.uint8))
    return dataclasses.replace(data, train_images=images.to(data.train_images.device))


DEFICITS: dict[str, Callable[[ImageData, int], ImageData]] = {
    "blur": blur, "flip": flip, "permutation": permutation, "noise": noise
}  # fmt: skip


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
