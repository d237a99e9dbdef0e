"""The networks of the entrypoint: a small CNN, and CIFAR's residual networks as the paper has them.

All take images float [N, C, H, W], mean-subtracted, and return logits [N, classes].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.config import MODELS
from cpfast.train.errors import UserError


def build(name: str, shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """A freshly initialised model on the CPU; the same seed gives the same weights to the bit.

    The global random state is left as it was.

    Args:
        name: one of `cpfast.train.config.MODELS`.
        shape: of a sample: (height, width, channels) of an image.
        outputs: number of logits.
    """
    if name not in MODELS:
        raise UserError(f"--model must be one of {', '.join(MODELS)}; got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "cnn":
            return SmallCNN(shape[2], outputs)
        return ResNet(int(name.removeprefix("resnet")), shape[2], outputs)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with two poolings: about 63 thousand parameters."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, 16), _norm(16)
        self.conv2, self.norm2 = _conv(16, 32), _norm(32)
        self.conv3, self.norm3 = _conv(32, 64), _norm(64)
        self.conv4, self.norm4 = _conv(64, 64), _norm(64)
        self.head = nn.Linear(256, classes)
        _init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.norm4(self.conv4(x)))
        return self.head(_quadrant_means(x))


class ResNet(nn.Module):
    """The residual network of 6n + 2 layers for small images, with 16, 32 and 64 channels.

    As in 2506.15954: He-normal kernels, 1x1 shortcuts without batch normalisation, running
    statistics with (torch's) momentum .01 and eps 1e-3.
    """

    def __init__(self, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        self.stem, self.norm = _conv(channels, 16), _norm(16)
        blocks: list[nn.Module] = []
        width = 16
        for stage, wider in enumerate((16, 32, 64)):
            for number in range((depth - 2) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(ResidualBlock(width, wider, stride))
                width = wider
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, classes)
        _init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, width, stride), _norm(width)
        self.conv2, self.norm2 = _conv(width, width), _norm(width)
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Conv2d(channels, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _conv(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    # The normalisation that follows has the bias.
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


def _quadrant_means(x: Tensor) -> Tensor:
    """Means over the four quadrants, [N, C, H, W] -> [N, 4C]; they share the middle of odd sizes.

    Slices and means, because the backward of adaptive pooling is not deterministic on CUDA.
    """
    height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    top, bottom = x[:, :, :height], x[:, :, -height:]
    quadrants = (top[..., :width], top[..., -width:], bottom[..., :width], bottom[..., -width:])
    return torch.cat([q.mean((2, 3)) for q in quadrants], 1)


def _init_he(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
