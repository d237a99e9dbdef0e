"""Cross-entropy of a linear layer's outputs, which are formed a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpfast.ops._common import OPS, REFERENCE

__all__ = ["LOSS", "Rows", "chunk_rows", "computed_in"]

LOSS = 0  # of the numbers that a table may hold, as the compiled op counts them
_LEAST_ROWS = 256
_MOST_CHUNKS = 16


def chunk_rows(rows: int, width: int, device: torch.device) -> int:
    """Rows of logits that are held at once: a sixteenth, but 256 at least, and on a GPU half the
    layer's width.

    Fewer make the matrix products slow, and the weight's gradient is read and written once a chunk:
    where products are fast, that takes longer than they do.
    """
    least = _LEAST_ROWS if device.type == "cpu" else max(_LEAST_ROWS, width // 2)
    return min(max(least, -(-rows // _MOST_CHUNKS)), max(rows, 1))


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the logits: that of the operands, but float32 where a CPU has no products of
    their kind, and would take many times as long."""
    if device.type != "cpu" or dtype not in (torch.float16, torch.bfloat16):
        return dtype
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype if dtype == torch.bfloat16 and has_bfloat16 else torch.float32


class Rows(NamedTuple):
    """Which rows are computed, in which order.

    On the CPU, those that are ignored are left out, and those of weight 0 come last, for they need
    no gradient. On CUDA the host does not know which these are.
    """

    order: Tensor | None
    """[n] int64; None: all of them, as they stand."""
    computed: int
    with_gradient: int
    """How many of them, from the first on."""

    @classmethod
    def of(cls, kept: Tensor, factor: Tensor | None, most: int | None) -> Rows:
        """
        Args:
            kept: [N] bool, those that are not ignored.
            factor: [N], what their gradients are multiplied by; None: there are none.
            most: an upper bound of how many are kept; None: unknown.
        """
        count = len(kept)
        if _is_blind(kept.device):
            if most is None or most >= count:
                return cls(None, count, 0 if factor is None else count)
            order = kept.logical_not().to(torch.uint8).argsort(stable=True)[:most]
            return cls(order, most, 0 if factor is None else most)
        moving = kept if factor is None else kept & (factor != 0)
        if bool(moving.all()):
            return cls(None, count, 0 if factor is None else count)
        first = moving.nonzero()[:, 0]
        still = (kept & ~moving).nonzero()[:, 0]
        order = torch.cat([first, still])
        return cls(order, len(order), 0 if factor is None else len(first))

    def chunks(self, size: int) -> Iterator[tuple[slice, bool]]:
        """Parts of them, and whether they need a gradient."""
        for begin, end in ((0, self.with_gradient), (self.with_gradient, self.computed)):
            for at in range(begin, end, size):
                yield slice(at, min(at + size, end)), end == self.with_gradient

    def take(self, values: Tensor) -> Tensor:
        return values if self.order is None else values[self.order]

    def put_back(self, values: Tensor, size: int) -> Tensor:
        """Along the first dimension; 0 for those that were left out."""
        if self.order is None:
            return values
        return values.new_zeros(size, *values.shape[1:]).index_copy_(0, self.order, values)


def _is_blind(device: torch.device) -> bool:
    """Whether looking at a value would cost a synchronisation."""
    return device.type != "cpu"


def _scored_linear(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    factor: Tensor | None,
    bias: Tensor | None,
    table: Tensor | None,
    index: Tensor | None,
    score: int,
    class_weight: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float,
    chunk: int,
    most: int,
    of_hidden: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    Args:
        hidden: [N, D]. weight: [V, D]. bias: [V]. target: [N] or [B, T] int64.
        factor: [N] of the losses' dtype: gradients are those of sum(factor * loss); None: none.
        table, index, score: as in scored_cross_entropy, per sequence for targets [B, T].
        class_weight: [V] of the losses' dtype. softcap: 0 for none.
        most: bound of the rows that are not ignored; -1: unknown.
        of_hidden, of_weight, of_bias: which gradients are wanted.

    Returns:
        Losses [N], scores [3, N]; gradients of hidden, as that (float32 of float16); of the
        weight, and of the bias [1, V], in float32 or float64. Those that are not wanted are empty.
    """
    size, y = len(hidden), target.flatten()
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    dtype = computed_in(hidden.dtype, hidden.device)
    kept = y != ignore_index
    if not _is_blind(y.device):
        _check_classes(y, kept, len(weight), ignore_index)
    rows = Rows.of(kept, factor, None if most < 0 else most)
    x, own = rows.take(hidden).to(dtype), rows.take(y)
    if logit_scale != 1:
        x = x * logit_scale
    matrix, added = weight.to(dtype), None if bias is None else bias.to(dtype)
    scale = None if factor is None else rows.take(factor)[:, None]
    losses = torch.empty(rows.computed, dtype=real, device=x.device)
    scores = torch.empty(3, rows.computed, dtype=torch.float32, device=x.device)
    buffer = x.new_empty(min(chunk, rows.computed), len(matrix))
    capped = torch.empty_like(buffer) if softcap and scale is not None else None
    # An op returns no None.
    at: Any = {"dtype": real, "device": x.device}
    grad_x = torch.empty(x.shape, **at) if of_hidden else torch.empty(0, **at)
    grad_matrix = torch.zeros(matrix.shape, **at) if of_weight else torch.empty(0, **at)
    grad_added = torch.zeros(1, len(matrix), **at) if of_bias else torch.empty(0, **at)
    # On the CPU the rows may have another order, in which the last of equal indices is another.
    at_once = table is not None and target.dim() == 1 and _is_blind(x.device)
    noted, places = (table, rows.take(index)) if at_once and index is not None else (None, None)
    if z_loss and score == LOSS and table is not None and not at_once:
        # Losses hold the z_loss, which no table does.
        noted = torch.zeros(rows.computed, dtype=torch.float32, device=x.device)
        places = torch.arange(rows.computed, device=x.device)
    product = torch.empty_like(matrix) if of_weight and dtype != real else None
    with torch.autocast(x.device.type, enabled=False):  # the dtypes are chosen here
        for part, moves in rows.chunks(chunk):
            h = x[part]
            z = buffer[: len(h)]
            if added is None:
                torch.mm(h, matrix.t(), out=z)
            else:
                torch.addmm(added, h, matrix.t(), out=z)
            if softcap:
                z.div_(softcap).tanh_()
                if moves and capped is not None:
                    capped[: len(h)].copy_(z)
                z.mul_(softcap)
            losses[part], scores[:, part], _ = OPS.scored_cross_entropy(
                z,
                own[part],
                None,
                label_smoothing,
                ignore_index,
                0,
                z if moves else None,
                noted,
                None if places is None else places[part],
                score,
                class_weight,
                z_loss,
            )
            if not moves or scale is None:
                if of_hidden:
                    grad_x[part] = 0
                continue
            if capped is not None:
                z.mul_(capped[: len(h)].square_().neg_().add_(1))
            # The factors go where there are D of them a row, and not V: they cost nothing there,
            # and gradients of half precision keep their digits whatever the factor.
            if of_hidden:
                torch.mul(torch.mm(z, matrix), scale[part] * logit_scale, out=grad_x[part])
            if of_weight:
                scaled = (h * scale[part]).to(dtype)
                if product is None:
                    grad_matrix.addmm_(z.t(), scaled)
                else:
                    grad_matrix.add_(torch.mm(z.t(), scaled, out=product))
            if of_bias:
                grad_added.add_(torch.mm(scale[part].t().to(dtype), z))
    losses, scores = rows.put_back(losses, size), rows.put_back(scores.t(), size).t()
    if most >= 0 and _is_blind(x.device):
        # Nobody would notice the rows that are missing.
        losses.masked_fill_(kept & (kept.sum() > most), torch.nan)
    if of_hidden:
        grad_x = rows.put_back(grad_x, size)
        if hidden.dtype in (torch.float64, torch.float32, torch.bfloat16):
            grad_x = grad_x.to(hidden.dtype)
    if table is not None and index is not None and not at_once:
        values = scores[score - 1]
        if score == LOSS:
            values = losses if noted is None else rows.put_back(noted, size)
        _record(table, index, values.detach().float(), kept, target.shape)
    return losses, scores.contiguous(), grad_x, grad_matrix, grad_added


def _check_classes(target: Tensor, kept: Tensor, classes: int, ignore_index: int) -> None:
    wrong = (kept & ((target < 0) | (target >= classes))).nonzero()
    if len(wrong):
        at = int(wrong[0, 0])
        raise RuntimeError(
            f"cpfast::scored_linear_cross_entropy: target[{at}]: expected a class in "
            f"[0, {classes}) or ignore_index {ignore_index}, got {int(target[at])}"
        )


def _record(table: Tensor, index: Tensor, values: Tensor, kept: Tensor, shape: torch.Size) -> None:
    """Of what is ignored nothing is written; of equal indices the last one's."""
    if len(index) == 0:
        return
    if len(shape) == 2:
        tokens = kept.view(shape).sum(1)
        values = (values.view(shape).sum(1, dtype=torch.float64) / tokens).float()
        kept = tokens > 0
    if not _is_blind(kept.device):
        if not bool(kept.all()):
            index, values = index[kept], values[kept]
        OPS.record_scores(table, index, values.contiguous())
        return
    # The host does not know how many there are. Those that are ignored write once more what the
    # last one of their index that is not writes, or what stands there.
    at = index[None, :].eq(index[:, None]) & kept
    last = torch.where(at, torch.arange(len(index), device=index.device), -1).amax(1)
    again = torch.where(last >= 0, values[last.clamp_min(0)], table[index])
    OPS.record_scores(table, index, again)


if not REFERENCE:
    _op = torch.library.custom_op(
        "cpfast::scored_linear_cross_entropy", _scored_linear, mutates_args=("table",)
    )

    @_op.register_fake
    def _(
        hidden: Tensor, weight: Tensor, target: Tensor, factor: Tensor | None, *options: object
    ) -> tuple[Tensor, ...]:
        of_hidden, of_weight, of_bias = options[-3:]
        size, (classes, width) = len(hidden), weight.shape
        real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        like_hidden = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        none = hidden.new_empty(0, dtype=real)
        return (
            hidden.new_empty(size, dtype=real),
            hidden.new_empty(3, size, dtype=torch.float32),
            hidden.new_empty(size, width, dtype=like_hidden) if of_hidden else none.clone(),
            hidden.new_empty(classes, width, dtype=real) if of_weight else none.clone(),
            hidden.new_empty(1, classes, dtype=real) if of_bias else none,
        )
