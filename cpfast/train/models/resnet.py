"""ImageNet's residual networks: ResNet-18, 34, 50 (1512.03385)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import conv, init_fan_out, is_small

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels; ResNet-50's blocks widen them fourfold.

    The stride of a bottleneck is that of its 3x3 convolution, as torchvision has it.

    Args:
        small: a 3x3 stem without stride and pooling, for images up to 64 pixels a side, in place
            of ImageNet's, which takes every fourth pixel.
    """

    def __init__(self, depth: int, channels: int, outputs: int, small: bool) -> None:
        super().__init__()
        self.small = small
        self.stem = conv(channels, 64) if small else conv(channels, 64, 7, 2)
        self.norm = nn.BatchNorm2d(64)
        block = _Bottleneck if depth == 50 else _Basic
        blocks: list[nn.Module] = []
        entering = 64
        for stage, count in enumerate(BLOCKS[depth]):
            width = 64 << stage
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(entering, width, stride))
                entering = block.expansion * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(entering, outputs)
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        if not self.small:
            x = F.max_pool2d(x, 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, width, stride=stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv(width, width), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = self.expansion * width
        self.conv1, self.norm1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv(width, width, stride=stride), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = conv(width, wide, 1), nn.BatchNorm2d(wide)
        self.shortcut = _shortcut(channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))


def _register(depth: int) -> None:
    line = f"ImageNet's residual network of {depth} layers, with another stem for small images"

    @models.register(f"resnet{depth}", source="arXiv 1512.03385", line=line)
    def make() -> Model:
        return Model(lambda shape, outputs: ResNet(depth, shape[2], outputs, is_small(shape)))


for _depth in BLOCKS:
    _register(_depth)
