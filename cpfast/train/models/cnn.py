"""A small CNN for small data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import conv, init_he, paper_norm


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with two poolings: about 63 thousand parameters."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, 16), paper_norm(16)
        self.conv2, self.norm2 = conv(16, 32), paper_norm(32)
        self.conv3, self.norm3 = conv(32, 64), paper_norm(64)
        self.conv4, self.norm4 = conv(64, 64), paper_norm(64)
        self.head = nn.Linear(256, outputs)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.norm4(self.conv4(x)))
        return self.head(_quadrant_means(x))


def _quadrant_means(x: Tensor) -> Tensor:
    """Means over the four quadrants, [N, C, H, W] -> [N, 4C]; they share the middle of odd sizes.

    Slices and means, because the backward of adaptive pooling is not deterministic on CUDA.
    """
    height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    top, bottom = x[:, :, :height], x[:, :, -height:]
    quadrants = (top[..., :width], top[..., -width:], bottom[..., :width], bottom[..., -width:])
    return torch.cat([q.mean((2, 3)) for q in quadrants], 1)


@models.register("cnn", source="this project")
def cnn() -> Model:
    """Four 3x3 convolutions with two poolings, of 63 thousand parameters, for small data."""
    return Model(lambda shape, outputs: SmallCNN(shape[2], outputs))
