"""A batch of a selection in random order, which is stored nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_devices, check_tensors, whole

__all__ = ["shuffled_slice"]


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
    """Positions [start, start + size) of the random order of the first ``count`` indices.

    They are those of ``select_samples(..., shuffle=True)``, for the same seed, epoch and stream,
    if ``indices`` and ``count`` are those of the same call without ``shuffle``. Each position is
    computed on its own: slices may be asked for in any order, and of any size.

    Args:
        indices: [N] int64 or int32, contiguous.
        count: [] int64, on the device of the indices: how many of them there are.
        start: the first position; as a tensor, [] int64 on the device, it is never read by the
            host, and a captured CUDA graph that advances it replays batch after batch.
        size: how many positions.
        seed, epoch, stream: integers; each triple is an order of its own.

    Returns:
        [size], of the dtype of ``indices``; -1 at positions from ``count`` on.

    Raises:
        RuntimeError: for a wrong shape, dtype or device, or a negative number.
        TypeError: for an argument of another type.

    Source: Mitchell et al., Bandwidth-Optimal Random Shuffling for GPUs (arXiv 2106.06161).
    """
    op = "shuffled_slice"
    check_tensors(op, indices=indices, count=count)
    seed, epoch, stream, size = (
        whole(op, name, value)
        for name, value in (("seed", seed), ("epoch", epoch), ("stream", stream), ("size", size))
    )
    if not isinstance(start, Tensor):
        start = whole(op, "start", start)
    if REFERENCE:
        return reference.shuffled_slice(
            indices, count, start, size, seed=seed, epoch=epoch, stream=stream
        )
    _backend.require_kernels("shuffled_slice", "indices", indices.device)
    first, cursor = (0, start) if isinstance(start, Tensor) else (start, None)
    return OPS.shuffled_slice(indices, count, first, size, seed, epoch, stream, cursor)


if not REFERENCE:

    @torch.library.register_fake("cpfast::shuffled_slice")
    def _(
        indices: Tensor,
        count: Tensor,
        start: int,
        size: int,
        seed: int,
        epoch: int,
        stream: int = 0,
        cursor: Tensor | None = None,
    ) -> Tensor:
        check_devices("shuffled_slice", indices=indices, count=count)
        return indices.new_empty(size)
