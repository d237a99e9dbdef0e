"""The mean squared error and the scores of its samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cpfast.reference._checks import check_elements
from cpfast.reference._record_scores import record_scores
from cpfast.results import ScoredRegression


def scored_mse(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "none",
    gradient: str = "backward",  # autograd's, whatever is asked for
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredRegression:
    check_elements("scored_mse", input, target)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    x, t = rows_of(input, wide), rows_of(target, wide)
    loss = F.mse_loss(x, t, reduction="none").mean(1)
    with torch.no_grad():
        el2n = torch.linalg.vector_norm(x.detach() - t, dim=1).float()
        recorded(table, index, {"loss": loss, "el2n": el2n}[score])
    return ScoredRegression(reduced(loss, weight, reduction), el2n)


def rows_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, L]."""
    tensor = tensor.to(dtype)
    return tensor[:, None] if tensor.dim() == 1 else tensor.flatten(1)


def reduced(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """The samples' losses, weighted, and their mean or sum."""
    if weight is not None:
        loss = loss * weight.reshape(-1).to(loss.dtype)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def recorded(table: Tensor | None, index: Tensor | None, values: Tensor) -> None:
    if table is not None and index is not None:
        record_scores(table, index, values.detach().float())
