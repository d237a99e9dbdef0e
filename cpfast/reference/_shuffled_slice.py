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
    n = min(max(int(count), 0), len(indices))
    if not isinstance(start, Tensor) and start < 0:
        raise RuntimeError(
            f"cpfast::shuffled_slice: start: expected a position from 0 on, got {start}"
        )
    # From n on all positions are alike, and none wraps round.
    positions = min(int(start), n) + torch.arange(size, device=indices.device)
    inside = (positions >= 0) & (positions < n)
    key = {"seed": seed, "epoch": epoch, "stream": stream, "purpose": SHUFFLE}
    out = torch.full_like(positions, -1, dtype=indices.dtype)
    out[inside] = indices[permute(positions[inside], n, **key)]
    return out
