"""The samples of one epoch, chosen by their scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE
from cpfast.results import Selection

__all__ = ["select_samples"]


@torch.no_grad()
def select_samples(
    scores: Tensor,
    *,
    keep: float,
    seed: int,
    epoch: int,
    stream: int = 0,
    shuffle: bool = False,
) -> Selection:
    """InfoBatch's selection: all samples that score at or above the mean, and some below it.

    Of the M samples below the mean of the finite scores, exactly floor(keep * M) are drawn at
    random, and their weight is 1 / keep, so that the expected gradient is that of all samples.
    Samples whose score is NaN or inf are kept.

    The draw is a function of the scores and the numbers alone: the same on every device, rank
    and thread count, and nothing needs saving to repeat it.

    Args:
        scores: [N] float32.
        keep: share of the below-mean samples to keep, in (0, 1].
        seed, epoch, stream: integers; each triple is a draw of its own.
        shuffle: whether the indices come in random order rather than ascending.

    Returns:
        :class:`Selection`; its first ``count`` indices are the selection.

    Raises:
        RuntimeError: for a wrong shape, dtype or ``keep``.

    Source: InfoBatch, Qin et al. (arXiv 2303.04947).
    """
    if REFERENCE:
        return reference.select_samples(
            scores, keep=keep, seed=seed, epoch=epoch, stream=stream, shuffle=shuffle
        )
    _backend.require_kernels("select_samples", "scores", scores.device)
    return Selection(*OPS.select_samples(scores, float(keep), seed, epoch, stream, shuffle))


if not REFERENCE:

    @torch.library.register_fake("cpfast::select_samples")
    def _(scores: Tensor, *unused: Any, **also_unused: Any) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.empty_like(scores, dtype=torch.int64)
        return indices, torch.empty_like(scores), scores.new_empty((), dtype=torch.int64)
