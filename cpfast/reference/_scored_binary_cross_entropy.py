"""Binary cross-entropy of many labels and the scores of its samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cpfast.reference._checks import check_elements
from cpfast.reference._scored_mse import recorded, reduced, rows_of
from cpfast.results import ScoredLoss


def scored_binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "none",
    gradient: str = "backward",  # autograd's, whatever is asked for
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    check_elements("scored_binary_cross_entropy", input, target, fractions=True)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    x, t = rows_of(input, wide), rows_of(target, wide)
    positive = t
    if pos_weight is not None:
        positive = t * pos_weight.to(wide).expand(input.shape[1:]).reshape(-1)
    parts = [(1 - t, -F.logsigmoid(-x)), (positive, -F.logsigmoid(x))]
    # an infinite logit costs nothing where the target agrees with it
    first, second = (a * torch.where(a == 0, 0.0, b) for a, b in parts)
    loss = torch.where(x.isnan(), x, first + second).mean(1)
    with torch.no_grad():
        x = x.detach()
        errors = (1 - t) * torch.sigmoid(x) - t * torch.sigmoid(-x)
        el2n = torch.linalg.vector_norm(errors.double(), dim=1)
        margin = torch.where(t >= 0.5, x, -x).amin(1)
        correct = ((t >= 0.5) == (x > 0)).all(1)
        is_nan = loss.isnan()
        margin = torch.where(is_nan, math.nan, margin)
        scores = [s.float() for s in (el2n, margin, correct & ~is_nan)]
        values = dict(zip(("loss", "el2n", "margin", "correct"), (loss, *scores), strict=True))
        recorded(table, index, values[score])
    return ScoredLoss(reduced(loss, weight, reduction), *scores)
