"""A plain-PyTorch twin of every op: the oracle of the tests, the baseline of the benchmarks.

Each function has the signature of its namesake in :mod:`cpfast.ops` and runs on every device that
torch runs on. With ``CPFAST_BACKEND=reference`` the ops themselves are these functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cpfast.results import LayerStatistics, LayerSums, ScoredLoss, Selection

__all__ = [
    "augment_batch",
    "layer_rotation",
    "layer_statistics",
    "layer_sums",
    "ratio_of_sums",
    "record_layer_rotation",
    "record_scores",
    "rotation_of_sums",
    "scored_cross_entropy",
    "select_samples",
    "shuffled_slice",
    "statistics_of_sums",
]


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
    ratio = (rows.squared / rows.ref_squared).sqrt()
    is_one = ~((ratio > 0) & (ratio < math.inf)) | ((ratio - 1).abs() <= 1 / 32)
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


def scored_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "none",
    gradient: str = "backward",  # autograd's, whatever is asked for
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    logits, y = input.to(wide).flatten(0, -2), target.long().flatten()
    loss = F.cross_entropy(
        logits,
        y,
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    with torch.no_grad():
        x = logits.detach()
        kept = y != ignore_index
        own = torch.where(kept, y, 0)[:, None]
        one_hot = torch.zeros_like(x).scatter_(1, own, 1.0)
        el2n = torch.linalg.vector_norm(x.softmax(dim=1) - one_hot, dim=1)
        others = x.masked_fill(one_hot.bool(), -math.inf).amax(dim=1)
        margin = x.gather(1, own)[:, 0] - others
        margin = torch.where(el2n.isnan(), math.nan, margin)
        correct = (x.argmax(dim=1) == own[:, 0]) & ~el2n.isnan()
        scores = [
            torch.where(kept, s, 0.0).float().view(target.shape) for s in (el2n, margin, correct)
        ]
        if table is not None and index is not None:
            named = dict(zip(("el2n", "margin", "correct"), scores, strict=True))
            named["loss"] = torch.where(kept, loss.detach(), 0.0).view(target.shape)
            values, counted = named[score], kept.view(target.shape)
            if target.dim() == 2:
                tokens = counted.sum(1)
                values, counted = values.sum(1, dtype=torch.float64) / tokens, tokens > 0
            record_scores(table, index[counted], values[counted].float())
    if weight is not None:
        loss = loss * weight.flatten().to(wide)
    if reduction == "mean":
        loss = loss.sum() / kept.sum()
    elif reduction == "sum":
        loss = loss.sum()
    else:
        loss = loss.view(target.shape)
    return ScoredLoss(loss, *scores)


_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_SUBSET, _SHUFFLE, _BERNOULLI = 1, 2, 3
_AUGMENT = int.from_bytes(b"augment", "big")


def _mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _LONG
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _LONG
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _LONG
    return x ^ (x >> 31)


def _draw_key(seed: int, epoch: int, stream: int, purpose: int) -> int:
    key = _mix64(seed & _LONG)
    for word in (epoch, stream, purpose):
        key = _mix64(key ^ (word & _LONG))
    return key


def _round(x: Tensor) -> Tensor:
    # 32-bit words in int64: products wrap modulo 2^64, so their low 32 bits are right.
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


def permute(
    positions: Tensor, n: int, *, seed: int, epoch: int, stream: int, purpose: int
) -> Tensor:
    """The keyed permutation of [0, n) of ``csrc/permutation.h`` at some positions ([B] int64)."""
    bits = max(6, (n - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    state = _draw_key(seed, epoch, stream, purpose)
    keys = []
    for _ in range(8):
        state = _mix64(state)
        keys.append(state >> 32)

    x = positions
    walking = torch.ones_like(x, dtype=torch.bool)
    while bool(walking.any()):
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(0, 8, 2):
            left = left ^ (_round(right ^ keys[i]) & ((1 << left_bits) - 1))
            right = right ^ (_round(left ^ keys[i + 1]) & ((1 << right_bits) - 1))
        x = torch.where(walking, (left << right_bits) | right, x)
        walking = x >= n
    return x


def numbers(samples: Tensor, *, seed: int, epoch: int, stream: int, purpose: int) -> Tensor:
    """The 32-bit numbers of ``csrc/select_samples.h`` for sample ids: [B] int64."""
    counter = samples // 128 * 32 + samples % 32
    words = philox4x32(
        (counter & _WORD, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)),
        _draw_key(seed, epoch, stream, purpose),
    )
    return torch.stack(words).gather(0, (samples // 32 % 4)[None])[0]


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
        chosen = permute(order, len(ranks), **key, purpose=_SUBSET) < math.floor(keep * len(ranks))
    else:
        chosen = numbers(ranks, **key, purpose=_BERNOULLI) < math.ceil(keep * 2**32)
    kept = ~below
    kept[ranks[chosen]] = True
    order = kept.nonzero()[:, 0]
    count = torch.tensor(len(order), device=scores.device)
    if shuffle:
        order = shuffled_slice(order, count, 0, len(order), **key)
    indices = torch.full_like(scores, -1, dtype=dtype)
    weights = torch.zeros_like(scores)
    indices[: len(order)] = order.to(dtype)
    weights[: len(order)] = torch.where(below[order], 1 / keep, 1.0)
    return Selection(indices, weights, count)


def is_exact(subset: str | None, samples: int) -> bool:
    """Whether select_samples draws a subset of exact size."""
    if subset not in ("exact", "bernoulli", None):
        raise RuntimeError(
            f"cpfast::select_samples: subset: expected 'exact', 'bernoulli' or None, got {subset!r}"
        )
    return samples <= 64_000_000 if subset is None else subset == "exact"


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
    key = {"seed": seed, "epoch": epoch, "stream": stream, "purpose": _SHUFFLE}
    out = torch.full_like(positions, -1, dtype=indices.dtype)
    out[inside] = indices[permute(positions[inside], n, **key)]
    return out


@torch.no_grad()
def record_scores(scores: Tensor, index: Tensor, values: Tensor) -> None:
    # A stable sort keeps batch order among equal indices; the last of each run is written.
    ordered, position = index.sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    scores[ordered[last]] = values[position[last]]


def philox4x32(counter: Sequence[Tensor | int], key: int) -> list[Tensor]:
    """Philox4x32-10 of ``csrc/philox.h``: 4 counters, 32-bit words in int64, to 4 random words."""
    x, y, z, w = (torch.as_tensor(word) for word in counter)
    low, high = key & _WORD, (key >> 32) & _WORD
    for _ in range(10):
        # Products wrap modulo 2^64; the mask undoes the sign that the shift carries down.
        a, b = x * 0xD2511F53, z * 0xCD9E8D57
        x, y = ((b >> 32) & _WORD) ^ y ^ low, b & _WORD
        z, w = ((a >> 32) & _WORD) ^ w ^ high, a & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return [x, y, z, w]


def _signed_unit(word: Tensor) -> Tensor:
    return (word.double() + 0.5) * 2.0**-31 - 1


def _below(word: Tensor, n: int) -> Tensor:
    return (word * n) >> 32


def _reflect(i: Tensor, n: int) -> Tensor:
    return n - 1 - (n - 1 - i.abs()).abs()


def _warp(x: Tensor, angle: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """[B, C, H, W]: a pixel at offset (r, c) from the centre shows R(angle) ((r, c) + t)."""
    height, width = x.shape[2:]
    cos, sin = angle.cos(), angle.sin()
    # affine_grid wants (x, y) in units of half a width and half a height.
    to_x = [cos, sin * (height / width), (sin * down + cos * right) * (2 / width)]
    to_y = [-sin * (width / height), cos, (cos * down - sin * right) * (2 / height)]
    matrix = torch.stack([torch.stack(to_x, 1), torch.stack(to_y, 1)], 1)
    grid = F.affine_grid(matrix, [len(x), 1, height, width], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _numbers(values: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64, device=device)
    return numbers[:, None, None] if numbers.dim() == 1 else numbers.permute(2, 0, 1)


@torch.no_grad()
def augment_batch(
    images: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int,
    repeat: int | Tensor = 0,
    flip: bool = False,
    shift: float = 0.0,
    rotation: float = 0.0,
    crop: int = 0,
    cutout: int = 0,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    _, height, width, _ = images.shape
    device = images.device
    index = index.long()
    key = _mix64(_mix64(_mix64(seed & _LONG) ^ (epoch & _LONG)) ^ _AUGMENT)
    counter = (index & _WORD, (index >> 32) & _WORD, torch.zeros_like(index) + repeat)
    turn, down, right, flips = philox4x32((*counter, 0), key)
    top, left, hole_row, hole_column = philox4x32((*counter, 1), key)
    rows, columns = (torch.arange(n, device=device) for n in (height, width))

    x = images[index].double().permute(0, 3, 1, 2)
    if crop:
        top, left = (_below(word, 2 * crop + 1)[:, None] - crop for word in (top, left))
        batch = torch.arange(len(index), device=device)[:, None, None]
        from_row, from_column = _reflect(rows + top, height), _reflect(columns + left, width)
        x = x.permute(0, 2, 3, 1)[batch, from_row[:, :, None], from_column[:, None, :]]
        x = x.permute(0, 3, 1, 2)
    if (rotation or shift) and len(index):
        x = _warp(
            x,
            math.radians(rotation) * _signed_unit(turn),
            shift * _signed_unit(down) * height,
            shift * _signed_unit(right) * width,
        )
    if flip:
        x = torch.where((flips >> 31).bool()[:, None, None, None], x.flip(-1), x)
    x = x / 255
    if mean is not None:
        x = x - _numbers(mean, device)
    if std is not None:
        x = x / _numbers(std, device)
    if cutout:
        in_rows, in_columns = (
            (at >= first[:, None]) & (at < first[:, None] + cutout)
            for at, first in (
                (rows, _below(hole_row, height) - cutout // 2),
                (columns, _below(hole_column, width) - cutout // 2),
            )
        )
        x = x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)
