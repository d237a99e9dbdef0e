"""The distances of all layers from their reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpfast.results import LayerStatistics, LayerSums


@torch.no_grad()
def layer_sums(
    params: Sequence[Tensor], refs: Sequence[Tensor], ratio: Tensor | None = None
) -> Tensor:
    columns = []
    for layer, (w, w0) in enumerate(zip(params, refs, strict=True)):
        a, b = w.double(), w0.double()
        d = a - (b if ratio is None else _rounded(ratio)[layer] * b)
        flips = ((a < 0) & (b > 0)) | ((a > 0) & (b < 0))
        terms = (d.square(), d * b, a.square(), b.square(), a.abs(), flips.double())
        columns.append(torch.stack([term.sum() for term in terms]))
    return torch.stack(columns, dim=1)


def _rounded(ratio: Tensor) -> Tensor:
    """Six significant bits."""
    dropped = 1 << 47
    return ((ratio.double().view(torch.int64) + dropped // 2) & -dropped).view(torch.float64)


def ratio_of_sums(sums: Tensor) -> Tensor:
    rows = LayerSums(*sums)
    ww, rr = rows.squared, rows.ref_squared
    ratio = ww.sqrt() / rr.sqrt()  # the quotient of squares may leave float64
    is_near = (ww >= (31 / 32) ** 2 * rr) & (ww <= (33 / 32) ** 2 * rr)
    is_one = is_near | ~((ratio > 0) & (ratio < math.inf))
    return torch.where(is_one, 1.0, _rounded(ratio))


def rotation_of_sums(sums: Tensor, ratio: Tensor | None = None) -> Tensor:
    dd, d0, ww, rr = LayerSums(*sums)[:4]
    s = torch.ones_like(dd) if ratio is None else _rounded(ratio)
    a, b = ww.sqrt(), s * rr.sqrt()
    distance = (dd - ((2 * s * d0 + dd) / (a + b)).square()) / (2 * a * b)
    one_is_zero = ((ww == 0) != (rr == 0)).double()
    distance = torch.where((ww == 0) | (rr == 0), one_is_zero, distance.clamp(0, 2))
    return torch.where(sums[:4].isfinite().all(0), distance, math.nan).float()


def statistics_of_sums(sums: Tensor, numel: Tensor, ratio: Tensor | None = None) -> LayerStatistics:
    rows, n = LayerSums(*sums), numel.clamp(min=1)
    distance = rows.difference_squared
    if ratio is not None:
        # |w - w0| of sums of w - s w0.
        more = _rounded(ratio) - 1
        terms = more * (2 * rows.difference_times_ref + more * rows.ref_squared)
        distance = torch.where(more == 0, distance, (distance + terms).clamp(min=0))
    rotation = rotation_of_sums(sums, ratio)
    others = (distance.sqrt(), rows.squared.sqrt(), rows.sign_flips / n, rows.magnitude / n)
    return LayerStatistics(rotation, *(row.float() for row in others))


@torch.no_grad()
def layer_statistics(
    params: Sequence[Tensor], refs: Sequence[Tensor], ref_sq_norms: Tensor | None = None
) -> LayerStatistics:
    def with_norms(sums: Tensor) -> Tensor:
        if ref_sq_norms is None:
            return sums
        return torch.stack(LayerSums(*sums)._replace(ref_squared=ref_sq_norms))

    ratio = ratio_of_sums(with_norms(layer_sums(params, refs)))
    numel = torch.tensor([w.numel() for w in params], device=ratio.device)
    return statistics_of_sums(with_norms(layer_sums(params, refs, ratio)), numel, ratio)


def layer_rotation(
    params: Sequence[Tensor], refs: Sequence[Tensor], ref_sq_norms: Tensor | None = None
) -> Tensor:
    return layer_statistics(params, refs, ref_sq_norms).cosine_distance


@torch.no_grad()
def record_layer_rotation(
    params: Sequence[Tensor],
    refs: Sequence[Tensor],
    ref_sq_norms: Tensor | None,
    history: Tensor,
    cursor: Tensor,
) -> None:
    if cursor.device.type == "cpu" and not 0 <= cursor < 2**63 - 1:
        raise RuntimeError(
            "cpfast::record_layer_rotation: cursor: expected 0 or more, and less than 2^63 - 1, "
            f"got {cursor.item()}"
        )
    row = layer_rotation(params, refs, ref_sq_norms)[None]
    history.index_copy_(0, (cursor % len(history))[None], row)
    cursor += 1
