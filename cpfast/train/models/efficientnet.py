"""EfficientNet-B0 (1905.11946)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import conv, init_fan_out, is_small

# of each stage: expansion, kernel size, stride, width, blocks (table 1)
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


class EfficientNetB0(nn.Module):
    """Inverted bottlenecks with squeeze and excitation; without dropout and stochastic depth.

    Args:
        small: a stem without stride, for images up to 64 pixels a side.
    """

    def __init__(self, channels: int, outputs: int, small: bool) -> None:
        super().__init__()
        self.stem, self.norm1 = conv(channels, 32, 3, 1 if small else 2), nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        entering = 32
        for expansion, size, stride, width, count in STAGES:
            for number in range(count):
                blocks.append(_Block(entering, width, expansion, size, 1 if number else stride))
                entering = width
        self.blocks = nn.Sequential(*blocks)
        self.top, self.norm2 = conv(entering, 1280, 1), nn.BatchNorm2d(1280)
        self.head = nn.Linear(1280, outputs)
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.silu(self.norm1(self.stem(x))))
        x = F.silu(self.norm2(self.top(x)))
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, expansion: int, size: int, stride: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = nn.Sequential(conv(channels, wide, 1), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise, self.norm1 = conv(wide, wide, size, stride, wide), nn.BatchNorm2d(wide)
        self.squeeze = nn.Conv2d(wide, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, wide, 1)
        self.project, self.norm2 = conv(wide, width, 1), nn.BatchNorm2d(width)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.depthwise(self.expand(x))))
        gate = self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.norm2(self.project(y * gate.sigmoid()))
        return x + y if self.residual else y


@models.register("efficientnet-b0", source="arXiv 1905.11946")
def efficientnet_b0() -> Model:
    """EfficientNet-B0; a stem without stride for images up to 64 pixels a side."""
    return Model(lambda shape, outputs: EfficientNetB0(shape[2], outputs, is_small(shape)))
