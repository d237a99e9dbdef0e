"""Images averaged down by area."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["area_averaged", "coverage"]


def area_averaged(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Each pixel of the result is the mean over the area that it covers, where areas cut pixels
    too: [B, C, H, W] to [B, C, h, w], differentiable, in the same order each time."""
    height, width = images.shape[-2:]
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(images, (height // size[0], width // size[1]))
    down = coverage(height, size[0], images)
    across = coverage(width, size[1], images)
    # channels last is a matrix [W C] a row
    rows = down @ images.permute(0, 2, 3, 1).flatten(2)
    columns = across @ rows.view(len(images), size[0], width, images.shape[1])
    return columns.permute(0, 3, 1, 2)


def coverage(pixels: int, size: int, like: Tensor) -> Tensor:
    """[size, pixels] in the dtype of ``like``: the share of each of ``size`` equal lengths that a
    pixel fills, of ``pixels`` equal lengths; rows add up to 1."""
    # In units in which both are whole: exact.
    ends = torch.arange(1, size + 1, device=like.device)[:, None] * pixels
    edges = torch.arange(1, pixels + 1, device=like.device) * size
    shared = torch.minimum(ends, edges) - torch.maximum(ends - pixels, edges - size)
    return shared.clamp_min(0).to(like.dtype) / pixels
