"""ViT-Tiny (2012.12877, DeiT-Ti)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cpfast._area import area_averaged
from cpfast.train.errors import UserError
from cpfast.train.models import Model, models
from cpfast.train.models.attention import Block, init_transformer
from cpfast.train.models.layers import is_small

WIDTH, DEPTH, HEADS = 192, 12, 3


class ViTTiny(nn.Module):
    """Patches and a class token through 12 blocks, with learned positions.

    Args:
        shape: (height, width, channels) of the images. Smaller ones take the means of the
            positions that their patches cover.
        patch: side of a patch in pixels.

    Raises:
        UserError: the images cannot be cut into whole patches.
        ValueError: in a forward pass, smaller images cannot.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, patch: int) -> None:
        super().__init__()
        height, width, channels = shape
        if height % patch or width % patch:
            raise UserError(
                f"--model vit-tiny cuts images into patches of {patch}x{patch}, which do not fill "
                f"{height}x{width}; use images of a multiple of {patch} pixels or another --model"
            )
        self.grid = (height // patch, width // patch)
        tokens = 1 + self.grid[0] * self.grid[1]
        self.patches = nn.Conv2d(channels, WIDTH, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, tokens, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, causal=False) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, outputs)
        init_transformer(self, DEPTH)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.patches.weight, std=1 / math.sqrt(channels * patch * patch))

    def forward(self, x: Tensor) -> Tensor:
        (patch, _), (height, width) = self.patches.kernel_size, x.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"patches of {patch}x{patch} do not fill {height}x{width}")
        positions = self._positions(height // patch, width // patch)
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + positions
        return self.head(self.norm(self.blocks(x))[:, 0])

    def _positions(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == self.grid:
            return self.positions
        of_class, of_patches = self.positions[:, :1], self.positions[:, 1:]
        full = of_patches.transpose(1, 2).unflatten(2, self.grid)
        return torch.cat((of_class, area_averaged(full, (rows, columns)).flatten(2).mT), 1)


@models.register("vit-tiny", source="arXiv 2012.12877")
def vit_tiny() -> Model:
    """DeiT-Ti's 12 blocks of width 192, in patches of 4 pixels, above 64 a side of 16."""
    return Model(
        lambda shape, outputs: ViTTiny(shape, outputs, patch=4 if is_small(shape) else 16),
        optimizer="adamw",
    )
