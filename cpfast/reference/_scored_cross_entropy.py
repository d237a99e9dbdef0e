"""Cross-entropy and the scores of its samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cpfast.reference._checks import check_range
from cpfast.reference._record_scores import record_scores
from cpfast.results import ScoredLoss


def scored_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "none",
    gradient: str = "backward",  # autograd's, whatever is asked for
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    classes, shape = input.shape[-1], input.shape[:-1]
    has_classes = not target.is_floating_point()
    # the least number there is stands for none
    ignored = "" if ignore_index == -(2**63) else f" or ignore_index {ignore_index}"
    if has_classes:
        check_range(
            "scored_cross_entropy", "target", target, classes,
            f"a class in [0, {classes}){ignored}", ignored=ignore_index,
        )  # fmt: skip
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    logits = input.to(wide).flatten(0, -2)
    y = target.long().flatten() if has_classes else target.to(wide).flatten(0, -2)
    by_class = None if class_weight is None else class_weight.to(wide)
    if has_classes and not (by_class is not None and label_smoothing > 0):
        loss = F.cross_entropy(
            logits,
            y,
            weight=by_class,
            reduction="none",
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
    else:
        loss = _of_shares(logits, y, by_class, label_smoothing, ignore_index)
    with torch.no_grad():
        x = logits.detach()
        if has_classes:
            kept = y != ignore_index
            own = torch.where(kept, y, 0)[:, None]
            asked = torch.zeros_like(x).scatter_(1, own, 1.0)
        else:
            kept = torch.ones_like(y[:, 0], dtype=torch.bool)
            own, asked = y.argmax(dim=1, keepdim=True), y
        one_hot = torch.zeros_like(x).scatter_(1, own, 1.0)
        el2n = torch.linalg.vector_norm(x.softmax(dim=1) - asked, dim=1)
        others = x.masked_fill(one_hot.bool(), -math.inf).amax(dim=1)
        margin = x.gather(1, own)[:, 0] - others
        margin = torch.where(el2n.isnan(), math.nan, margin)
        correct = (x.argmax(dim=1) == own[:, 0]) & ~el2n.isnan()
        scores = [torch.where(kept, s, 0.0).float().view(shape) for s in (el2n, margin, correct)]
        if table is not None and index is not None:
            named = dict(zip(("el2n", "margin", "correct"), scores, strict=True))
            named["loss"] = torch.where(kept, loss.detach(), 0.0).view(shape)
            values, counted = named[score], kept.view(shape)
            if len(shape) == 2:
                tokens = counted.sum(1)
                values, counted = values.sum(1, dtype=torch.float64) / tokens, tokens > 0
            record_scores(table, index[counted], values[counted].float())
    if z_loss > 0:
        loss = loss + torch.where(kept, z_loss * logits.logsumexp(dim=1) ** 2, 0.0)
    if weight is not None:
        loss = loss * weight.flatten().to(wide)
    if reduction == "mean":
        counted = kept if by_class is None or not has_classes else kept * by_class[own[:, 0]]
        loss = loss.sum() / counted.sum()
    elif reduction == "sum":
        loss = loss.sum()
    else:
        loss = loss.view(shape)
    return ScoredLoss(loss, *scores)


def _of_shares(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """As F.cross_entropy, but that a masked logit of which nothing is asked costs nothing, where
    torch has 0 times infinity."""
    asked = target
    if not target.is_floating_point():
        kept = target != ignore_index
        asked = F.one_hot(torch.where(kept, target, 0), logits.shape[1]).to(logits.dtype)
    shares = (1 - label_smoothing) * asked + label_smoothing / logits.shape[1]
    if class_weight is not None:
        shares = shares * class_weight
    if not target.is_floating_point():
        shares = shares * kept[:, None]
    log_p = logits.log_softmax(1)
    return -(shares * torch.where(shares != 0, log_p, 0.0)).sum(1)
