"""The samples of one epoch, chosen by their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_tensors, real, whole
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
    subset: str | None = None,
    dtype: torch.dtype = torch.int64,
) -> Selection:
    """InfoBatch's selection: all samples that score at or above the mean, and some below it.

    Of the M samples below the mean of the finite scores, some are drawn at random, and their
    weight is 1 / keep, so that the expected gradient is that of all samples. Samples whose score
    is NaN or inf are kept.

    The draw is a function of the scores and the numbers alone: the same on every device, rank
    and thread count, and nothing needs saving to repeat it.

    What is kept in ascending order can be shuffled a batch at a time, by :func:`shuffled_slice`:
    no more is stored or moved than a batch needs.

    Args:
        scores: [N] float32.
        keep: share of the below-mean samples to keep, in (0, 1].
        seed, epoch, stream: integers; each triple is a draw of its own.
        shuffle: whether the indices come in random order rather than ascending.
        subset: "exact" draws floor(keep * M) samples; "bernoulli" draws each with probability
            keep (rounded up to a multiple of 2^-32), without regard to the others; None is exact
            up to 64 million samples, and "bernoulli" beyond.
        dtype: torch.int64, or torch.int32 for fewer than 2^31 samples: that of the indices.

    Returns:
        :class:`Selection`; its first ``count`` indices are the selection.

    Raises:
        RuntimeError: for a wrong shape, dtype, ``keep`` or ``subset``.
        TypeError: for an argument of another type.

    Source: InfoBatch, Qin et al. (arXiv 2303.04947).
    """
    op = "select_samples"
    check_tensors(op, scores=scores)
    keep = real(op, "keep", keep)
    seed, epoch, stream = (
        whole(op, name, value)
        for name, value in (("seed", seed), ("epoch", epoch), ("stream", stream))
    )
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"cpfast::{op}: dtype: expected torch.int64 or torch.int32, got {dtype!r}")
    if REFERENCE:
        return reference.select_samples(
            scores,
            keep=keep,
            seed=seed,
            epoch=epoch,
            stream=stream,
            shuffle=shuffle,
            subset=subset,
            dtype=dtype,
        )
    _backend.require_kernels("select_samples", "scores", scores.device)
    exact = reference.is_exact(subset, scores.numel())
    return Selection(
        *OPS.select_samples(scores, keep, seed, epoch, stream, bool(shuffle), exact, dtype)
    )


if not REFERENCE:

    @torch.library.register_fake("cpfast::select_samples")
    def _(
        scores: Tensor,
        keep: float,
        seed: int,
        epoch: int,
        stream: int = 0,
        shuffle: bool = False,
        exact: bool = True,
        dtype: torch.dtype = torch.int64,
    ) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.empty_like(scores, dtype=dtype)
        return indices, torch.empty_like(scores), scores.new_empty((), dtype=torch.int64)
