"""A batch of augmented images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cpfast._area import area_averaged
from cpfast.reference._checks import check_range
from cpfast.reference._draws import AUGMENT, LONG, WORD, mix64, philox4x32


def _signed_unit(word: Tensor) -> Tensor:
    return (word.double() + 0.5) * 2.0**-31 - 1


def _below(word: Tensor, n: int) -> Tensor:
    return (word * n) >> 32


def _reflect(i: Tensor, n: int) -> Tensor:
    return n - 1 - (n - 1 - i.abs()).abs()


def warp(x: Tensor, angle: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """[B, C, H, W]: a pixel at offset (r, c) from the centre shows R(angle) ((r, c) + t)."""
    height, width = x.shape[2:]
    cos, sin = angle.cos(), angle.sin()
    # affine_grid wants (x, y) in units of half a width and half a height.
    to_x = [cos, sin * (height / width), (sin * down + cos * right) * (2 / width)]
    to_y = [-sin * (width / height), cos, (cos * down - sin * right) * (2 / height)]
    matrix = torch.stack([torch.stack(to_x, 1), torch.stack(to_y, 1)], 1)
    grid = F.affine_grid(matrix, [len(x), 1, height, width], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _numbers(values: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64, device=device)
    return numbers[:, None, None] if numbers.dim() == 1 else numbers.permute(2, 0, 1)


@torch.no_grad()
def augment_batch(
    images: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int,
    repeat: int | Tensor = 0,
    flip: bool = False,
    shift: float = 0.0,
    rotation: float = 0.0,
    crop: int = 0,
    cutout: int = 0,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] | None = None,
) -> Tensor:
    samples, height, width, _ = images.shape
    if size is not None and not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise RuntimeError(
            f"cpfast::augment_batch: size: expected 1 to {height}, 1 to {width}, got {size[0]}, "
            f"{size[1]}"
        )
    check_range("augment_batch", "index", index, samples, f"a number in [0, {samples})")
    device = images.device
    index = index.long()
    key = mix64(mix64(mix64(seed & LONG) ^ (epoch & LONG)) ^ AUGMENT)
    counter = (index & WORD, (index >> 32) & WORD, torch.zeros_like(index) + repeat)
    turn, down, right, flips = philox4x32((*counter, 0), key)
    top, left, hole_row, hole_column = philox4x32((*counter, 1), key)
    rows, columns = (torch.arange(n, device=device) for n in (height, width))

    x = images[index].double().permute(0, 3, 1, 2)
    if crop:
        top, left = (_below(word, 2 * crop + 1)[:, None] - crop for word in (top, left))
        batch = torch.arange(len(index), device=device)[:, None, None]
        from_row, from_column = _reflect(rows + top, height), _reflect(columns + left, width)
        x = x.permute(0, 2, 3, 1)[batch, from_row[:, :, None], from_column[:, None, :]]
        x = x.permute(0, 3, 1, 2)
    if (rotation or shift) and len(index):
        x = warp(
            x,
            math.radians(rotation) * _signed_unit(turn),
            shift * _signed_unit(down) * height,
            shift * _signed_unit(right) * width,
        )
    if flip:
        x = torch.where((flips >> 31).bool()[:, None, None, None], x.flip(-1), x)
    x = x / 255
    if mean is not None:
        x = x - _numbers(mean, device)
    if std is not None:
        x = x / _numbers(std, device)
    if cutout:
        in_rows, in_columns = (
            (at >= first[:, None]) & (at < first[:, None] + cutout)
            for at, first in (
                (rows, _below(hole_row, height) - cutout // 2),
                (columns, _below(hole_column, width) - cutout // 2),
            )
        )
        x = x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
    if size is not None:
        x = area_averaged(x, size)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)
