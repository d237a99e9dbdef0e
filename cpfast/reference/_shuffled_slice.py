"""A batch of a selection in random order."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.reference._draws import SHUFFLE, permute


@torch.no_grad()
def shuffled_slice(
    indices: Tensor,
    count: Tensor,
    start: int | Tensor,
    size: int,
    *,
    seed: int,
    epoch: int,
    stream: int = 0,
) -> Tensor:
    n = int(count)
    positions = int(start) + torch.arange(size, device=indices.device)
    inside = (positions >= 0) & (positions < n)
    key = {"seed": seed, "epoch": epoch, "stream": stream, "purpose": SHUFFLE}
    out = torch.full_like(positions, -1, dtype=indices.dtype)
    out[inside] = indices[permute(positions[inside], n, **key)]
    return out
