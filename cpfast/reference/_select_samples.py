"""The samples of one epoch, chosen by their scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cpfast.reference._draws import BERNOULLI, SUBSET, numbers, permute
from cpfast.reference._shuffled_slice import shuffled_slice
from cpfast.results import Selection


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
    finite = scores.isfinite()
    mean = torch.where(finite, scores, 0.0).sum(dtype=torch.float64) / finite.sum()
    below = scores.double() < mean
    ranks = below.nonzero()[:, 0]
    key = {"seed": seed, "epoch": epoch, "stream": stream}

    if is_exact(subset, len(scores)):
        order = torch.arange(len(ranks), device=scores.device)
        chosen = permute(order, len(ranks), **key, purpose=SUBSET) < math.floor(keep * len(ranks))
    else:
        chosen = numbers(ranks, **key, purpose=BERNOULLI) < math.ceil(keep * 2**32)
    kept = ~below
    kept[ranks[chosen]] = True
    order = kept.nonzero()[:, 0]
    count = torch.tensor(len(order), device=scores.device)
    if shuffle:
        order = shuffled_slice(order, count, 0, len(order), **key)
    indices = torch.full_like(scores, -1, dtype=dtype)
    weights = torch.zeros_like(scores)
    indices[: len(order)] = order.to(dtype)
    weights[: len(order)] = torch.where(
        below[order], torch.tensor(1 / keep, dtype=torch.float64), 1.0
    ).float()
    return Selection(indices, weights, count)


def is_exact(subset: str | None, samples: int) -> bool:
    """Whether select_samples draws a subset of exact size."""
    if subset not in ("exact", "bernoulli", None):
        raise RuntimeError(
            f"cpfast::select_samples: subset: expected 'exact', 'bernoulli' or None, got {subset!r}"
        )
    return samples <= 64_000_000 if subset is None else subset == "exact"
