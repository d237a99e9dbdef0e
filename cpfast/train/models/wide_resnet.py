"""Wide residual networks (1605.07146): WRN-28-10."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import conv, init_he


class WideResNet(nn.Module):
    """The pre-activation network of 6n + 4 layers, with 16, 32 and 64 channels times `widen`.

    Without the dropout between the convolutions of a block, as the paper's first table.
    """

    def __init__(self, depth: int, widen: int, channels: int, outputs: int) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4, got {depth}")
        self.stem = conv(channels, 16)
        blocks: list[nn.Module] = []
        entering = 16
        for stage in range(3):
            width = (16 << stage) * widen
            for number in range((depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Block(entering, width, stride))
                entering = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(entering)
        self.head = nn.Linear(entering, outputs)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    """Where the width changes, the shortcut too starts from the normalised input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
        self.shortcut = None if channels == width else conv(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        return x + self.conv2(F.relu(self.norm2(self.conv1(y))))


@models.register("wrn28-10", source="arXiv 1605.07146")
def wrn28_10() -> Model:
    """WRN-28-10, the wide residual network for small images, of 36 million parameters."""
    return Model(lambda shape, outputs: WideResNet(28, 10, shape[2], outputs))
