"""CIFAR's residual networks, as the paper has them: ResNet-8, 20, 32, 44, 56, 110."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import conv, init_he, paper_norm


class CifarResNet(nn.Module):
    """The residual network of 6n + 2 layers for small images, with 16, 32 and 64 channels.

    As in 2506.15954: He-normal kernels, 1x1 shortcuts without batch normalisation, running
    statistics with (torch's) momentum .01 and eps 1e-3.
    """

    def __init__(self, depth: int, channels: int, outputs: int) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        self.stem, self.norm = conv(channels, 16), paper_norm(16)
        blocks: list[nn.Module] = []
        width = 16
        for stage, wider in enumerate((16, 32, 64)):
            for number in range((depth - 2) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Block(width, wider, stride))
                width = wider
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, outputs)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, width, stride=stride), paper_norm(width)
        self.conv2, self.norm2 = conv(width, width), paper_norm(width)
        self.shortcut = nn.Identity() if stride == 1 else conv(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _register(depth: int) -> None:
    line = f"CIFAR's residual network of {depth} layers, with 16, 32 and 64 channels"

    @models.register(f"resnet{depth}", source="arXiv 2506.15954, 1512.03385", line=line)
    def make() -> Model:
        return Model(lambda shape, outputs: CifarResNet(depth, shape[2], outputs))


for _depth in (8, 20, 32, 44, 56, 110):
    _register(_depth)
