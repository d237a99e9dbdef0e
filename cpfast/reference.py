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

from cpfast.results import LayerStatistics, ScoredLoss, Selection

__all__ = [
    "augment_batch",
    "layer_rotation",
    "layer_statistics",
    "record_scores",
    "scored_cross_entropy",
    "select_samples",
]


@torch.no_grad()
def layer_statistics(
    params: Sequence[Tensor], refs: Sequence[Tensor], ref_sq_norms: Tensor | None = None
) -> LayerStatistics:
    columns = []
    for layer, (w, w0) in enumerate(zip(params, refs, strict=True)):
        wide = torch.float64 if torch.float64 in (w.dtype, w0.dtype) else torch.float32
        a, b = w.to(wide), w0.to(wide)
        d = a - b
        dd, d0 = d.square().sum(dtype=torch.float64), (d * b).sum(dtype=torch.float64)
        ww = a.square().sum(dtype=torch.float64)
        rr = b.square().sum(dtype=torch.float64) if ref_sq_norms is None else ref_sq_norms[layer]
        norm, ref_norm = ww.sqrt(), rr.sqrt()
        distance = (dd - ((2 * d0 + dd) / (norm + ref_norm)).square()) / (2 * norm * ref_norm)
        one_is_zero = ((ww == 0) != (rr == 0)).double()
        distance = torch.where((ww == 0) | (rr == 0), one_is_zero, distance.clamp(0, 2))
        flips = ((a < 0) & (b > 0)) | ((a > 0) & (b < 0))
        n = max(w.numel(), 1)
        columns.append(
            torch.stack([distance, dd.sqrt(), norm, flips.sum() / n, a.abs().sum() / n]).float()
        )
    return LayerStatistics(*torch.stack(columns, dim=1).unbind())


def layer_rotation(
    params: Sequence[Tensor], refs: Sequence[Tensor], ref_sq_norms: Tensor | None = None
) -> Tensor:
    return layer_statistics(params, refs, ref_sq_norms).cosine_distance


def scored_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> ScoredLoss:
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    logits = input.to(wide)
    loss = F.cross_entropy(
        logits,
        target,
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    if weight is not None:
        loss = loss * weight
    with torch.no_grad():
        x = logits.detach()
        kept = target != ignore_index
        y = torch.where(kept, target, 0)[:, None]
        one_hot = torch.zeros_like(x).scatter_(1, y, 1.0)
        el2n = torch.linalg.vector_norm(x.softmax(dim=1) - one_hot, dim=1)
        others = x.masked_fill(one_hot.bool(), -math.inf).amax(dim=1)
        margin = x.gather(1, y)[:, 0] - others
        margin = torch.where(el2n.isnan(), math.nan, margin)
        correct = (x.argmax(dim=1) == y[:, 0]) & ~el2n.isnan()
        scores = [torch.where(kept, s, 0.0).float() for s in (el2n, margin, correct)]
    return ScoredLoss(loss, *scores)


_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_SUBSET, _SHUFFLE = 1, 2
_AUGMENT = int.from_bytes(b"augment", "big")


def _mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _LONG
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _LONG
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _LONG
    return x ^ (x >> 31)


def _round(x: Tensor) -> Tensor:
    # 32-bit words in int64: products wrap modulo 2^64, so their low 32 bits are right.
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


def permutation(
    n: int, *, seed: int, epoch: int, stream: int, purpose: int, device: torch.device
) -> Tensor:
    """The keyed permutation of [0, n) of ``csrc/permutation.h``, written out: [n] int64."""
    bits = max(6, (n - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    state = _mix64(seed & _LONG)
    for word in (epoch, stream, purpose):
        state = _mix64(state ^ (word & _LONG))
    keys = []
    for _ in range(8):
        state = _mix64(state)
        keys.append(state >> 32)

    x = torch.arange(n, device=device)
    walking = torch.ones(n, dtype=torch.bool, device=device)
    while bool(walking.any()):
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(0, 8, 2):
            left = left ^ (_round(right ^ keys[i]) & ((1 << left_bits) - 1))
            right = right ^ (_round(left ^ keys[i + 1]) & ((1 << right_bits) - 1))
        x = torch.where(walking, (left << right_bits) | right, x)
        walking = x >= n
    return x


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
    finite = scores.isfinite()
    mean = torch.where(finite, scores, 0.0).sum(dtype=torch.float64) / finite.sum()
    below = scores.double() < mean
    ranks = below.nonzero()[:, 0]

    def positions(n: int, purpose: int) -> Tensor:
        key = {"seed": seed, "epoch": epoch, "stream": stream, "purpose": purpose}
        return permutation(n, **key, device=scores.device)

    chosen = positions(len(ranks), _SUBSET) < math.floor(keep * len(ranks))
    kept = ~below
    kept[ranks[chosen]] = True
    order = kept.nonzero()[:, 0]
    count = len(order)
    if shuffle:
        order = torch.empty_like(order).index_copy_(0, positions(count, _SHUFFLE), order)
    indices = torch.full_like(scores, -1, dtype=torch.int64)
    weights = torch.zeros_like(scores)
    indices[:count] = order
    weights[:count] = torch.where(below[order], 1 / keep, 1.0)
    return Selection(indices, weights, torch.tensor(count, device=scores.device))


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
