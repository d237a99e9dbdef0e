"""The residual network for time series of Wang, Yan, Oates 2017 (1611.06455).

Three blocks of three convolutions over time, of 8, 5 and 3 steps, the mean over time, and a dense
layer; of widths 64, 128, 128, as in their code (cauchyturing/UCR_Time_Series_Classification_
Deep_Learning_Baseline).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.train.models import Model, models
from cpfast.train.models.layers import init_he

WIDTHS = (64, 128, 128)
KERNELS = (8, 5, 3)


class Block(nn.Module):
    """[N, C, T] -> [N, width, T]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        inputs = (channels, width, width)
        self.convs = nn.ModuleList(
            nn.Conv1d(c, width, size, bias=False) for c, size in zip(inputs, KERNELS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in KERNELS)
        changes = channels != width
        self.shortcut = nn.Conv1d(channels, width, 1, bias=False) if changes else nn.Identity()
        self.shortcut_norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut_norm(self.shortcut(x))
        last = len(KERNELS) - 1
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            # torch's padding="same" warns of even kernels
            size = KERNELS[number]
            x = norm(conv(F.pad(x, ((size - 1) // 2, size // 2))))
            x = F.relu(x + shortcut if number == last else x)
        return x


class ResNet1d(nn.Module):
    """[N, C, T] -> logits [N, outputs]: about half a million parameters."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS[:-1])
        self.blocks = nn.Sequential(*map(Block, inputs, WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], outputs)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(2))


@models.register("resnet1d", source="arXiv 1611.06455")
def resnet1d() -> Model:
    """Three residual blocks over time, of half a million parameters, for time series."""
    return Model(
        lambda shape, outputs: ResNet1d(shape[0], outputs), reads="series", optimizer="adamw"
    )
