"""A linear layer, the cross-entropy of its outputs and the scores, without ever holding them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_tensors, real, whole
from cpfast.ops._logit_chunks import chunk_rows
from cpfast.ops._scored_cross_entropy import CLASSES, REDUCTIONS, SCORES, as_rows
from cpfast.results import ScoredLoss

__all__ = ["scored_linear_cross_entropy"]

_OP = "scored_linear_cross_entropy"
_GRADIENTS = ("backward", "forward")


def scored_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "none",
    gradient: str | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    max_rows: int | None = None,
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    """:func:`scored_cross_entropy` of ``hidden @ weight.T + bias``, a chunk of rows at a time.

    Of the logits no more than a chunk is ever held; where the gradients come with the loss, they
    are formed from that chunk while it is there, and nothing is computed twice. What the samples'
    losses are weighted by must be known for that, and is, where an epoch has been planned.

    Args:
        hidden: [N, D], or [B, T, D] for sequences of tokens; float32, float64, float16 or bfloat16.
        weight: [V, D], the layer's, of the same dtype.
        target: [N] or [B, T] of any integer dtype, in [0, V) or ``ignore_index``.
        bias: optional [V].
        sample_weight: optional, as target, or [B] for sequences, or [N, 1] or [B, 1]; multiplies
            the loss. No gradient flows into it. On the CPU, rows of weight 0 cost a third.
        class_weight: optional [V], multiplies each class's term. No gradient flows into it.
        label_smoothing: in [0, 1].
        z_loss: as in :func:`scored_cross_entropy`, of the logits after scale and cap.
        ignore_index: rows with this target have loss, scores and gradients 0. On the CPU they cost
            nothing.
        reduction: "none"; "mean", the weighted losses' sum over the number of rows that are not
            ignored, or over the sum of the class weights of their targets; or "sum".
        gradient: when it is computed. "forward": with the loss, which "mean" and "sum" allow; then
            a second backward pass is an error (not under torch.compile). "backward": then, from
            logits that are formed again, which costs a third more; None: the first where it can be.
        logit_scale: multiplies the product with the weight. For one that is learnt, multiply
            ``hidden``.
        softcap: c, where logits are c * tanh(x / c) of those; None: they are not.
        chunk: rows of logits that are held at once; None: a sixteenth of all, 256 at least, and on
            a GPU half of D.
        max_rows: an upper bound of the rows that are not ignored, which spares CUDA, whose host
            cannot count them, the others. Where there are more, the losses are NaN there; on the
            CPU that is an error.
        table, index, score: as in :func:`scored_cross_entropy`. With an ``index`` of all rows,
            the losses of each are had beside their mean.

    Returns:
        :class:`ScoredLoss`, as of :func:`scored_cross_entropy`; ``loss`` is differentiable once in
        ``hidden``, ``weight`` and ``bias``. The gradient of half-precision weights is added up over
        the chunks in float32. Under autocast the operands are cast as of a linear layer.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values, weights that are sharded, a
            target or an index out of range (as :func:`scored_cross_entropy`), and within
            torch.func's transforms.
        TypeError: for an argument of another type.

    Sources: the gradients in the forward pass, Liger-Kernel (arXiv 2410.10989); the soft cap,
    Gemma 2 (arXiv 2408.00118).
    """
    for name, choices, value in (
        ("reduction", REDUCTIONS, reduction), ("score", SCORES, score),
        ("gradient", (None, *_GRADIENTS), gradient),
    ):  # fmt: skip
        if value not in tuple(choices):
            _refuse(name, f"one of {tuple(choices)}", repr(value))
    check_tensors(_OP, hidden=hidden, weight=weight, target=target)
    given = {
        "bias": bias, "sample_weight": sample_weight, "class_weight": class_weight,
        "table": table, "index": index,
    }  # fmt: skip
    check_tensors(_OP, **{name: value for name, value in given.items() if value is not None})
    if (table is None) != (index is None):
        missing, other = ("index", "table") if index is None else ("table", "index")
        _refuse(missing, f"one, as {other} is given", "None")
    label_smoothing = real(_OP, "label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        _refuse("label_smoothing", "a number in [0, 1]", str(label_smoothing))
    z_loss = real(_OP, "z_loss", z_loss)
    if not 0 <= z_loss < float("inf"):
        _refuse("z_loss", "a finite number of at least 0", str(z_loss))
    ignore_index = whole(_OP, "ignore_index", ignore_index)
    logit_scale = _positive("logit_scale", logit_scale)
    cap = 0.0 if softcap is None else _positive("softcap", softcap)
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack():
        _refuse("hidden", "no transform of torch.func", "one")
    if forward_ad.unpack_dual(hidden).tangent is not None:
        _refuse("hidden", "no forward-mode derivatives", "one")
    hidden, weight, bias = _as_autocast(hidden, weight, bias)
    _check_operands(hidden, weight, bias, target)
    rows = target.numel()
    chunk = (
        chunk_rows(rows, hidden.shape[-1], hidden.device)
        if chunk is None
        else _at_least_one("chunk", chunk)
    )
    most = -1 if max_rows is None else _at_least_one("max_rows", max_rows)
    if sample_weight is not None:
        if sample_weight.requires_grad and torch.is_grad_enabled():
            _refuse("sample_weight", "one without a gradient (detach())", "one that requires it")
        sample_weight = as_rows(sample_weight, target.shape)
        if sample_weight.shape != target.shape or sample_weight.device != target.device:
            _refuse(
                "sample_weight",
                f"shape {list(target.shape)}, or one a sample, on {target.device}",
                f"{list(sample_weight.shape)} on {sample_weight.device}",
            )
    if class_weight is not None:
        if class_weight.requires_grad and torch.is_grad_enabled():
            _refuse("class_weight", "one without a gradient (detach())", "one that requires it")
        if class_weight.shape != weight.shape[:1] or class_weight.device != weight.device:
            _refuse(
                "class_weight",
                f"shape [{len(weight)}] on {weight.device}",
                f"{list(class_weight.shape)} on {class_weight.device}",
            )
        class_weight = class_weight.to(_real(hidden)).contiguous()
    if REFERENCE:
        logits = torch.nn.functional.linear(hidden, weight) * logit_scale
        logits = logits if bias is None else logits + bias
        return reference.scored_cross_entropy(
            logits if softcap is None else cap * torch.tanh(logits / cap),
            target,
            weight=sample_weight,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            ignore_index=ignore_index,
            reduction=reduction,
            table=table,
            index=index,
            score=score,
        )
    _backend.require_kernels(_OP, "hidden", hidden.device)
    target = target.long().contiguous()
    if index is not None:
        index = index.long().contiguous()
    if most >= 0 and target.device.type == "cpu" and not torch.compiler.is_compiling():
        found = int((target != ignore_index).sum())
        if found > most:
            _refuse("max_rows", f"at least the {found} rows that are not ignored", str(most))
    factor = None if sample_weight is None else sample_weight.flatten().to(_real(hidden))
    if reduction == "mean":
        # Those that are ignored have no factor: none is no number where all are.
        kept = target.flatten() != ignore_index
        counted = kept.sum() if class_weight is None else _counted(class_weight, target, kept)
        share = kept / counted.to(_real(hidden))
        factor = (share if factor is None else factor * share).masked_fill(~kept, 0.0)
        empty = torch.where(kept.any(), 0.0, torch.nan).to(_real(hidden))
    is_reduced = reduction != "none"
    if gradient == "forward" and not is_reduced:
        _refuse("gradient", "'backward' with reduction='none'", "'forward'")
    wanted = tuple(
        torch.is_grad_enabled() and x is not None and x.requires_grad
        for x in (hidden, weight, bias)
    )
    options = (label_smoothing, z_loss, ignore_index, logit_scale, cap, chunk, most)
    losses, scores = _ScoredLinear.apply(
        hidden.reshape(rows, hidden.shape[-1]),
        weight,
        bias,
        target,
        factor,
        table,
        index,
        SCORES[score],
        class_weight,
        options,
        wanted,
        is_reduced,
        is_reduced and gradient != "backward",
    )
    if not is_reduced:
        losses = losses.view(target.shape)
    elif reduction == "mean":
        losses = losses + empty
    return ScoredLoss(losses, *scores.view(3, *target.shape).unbind())


def _refuse(name: str, expected: str, value: str) -> None:
    raise RuntimeError(f"cpfast::{_OP}: {name}: expected {expected}, got {value}")


def _positive(name: str, value: Any) -> float:
    number = real(_OP, name, value)
    if not 0 < number < float("inf"):
        _refuse(name, "a finite positive number", str(value))
    return number


def _at_least_one(name: str, value: Any) -> int:
    number = whole(_OP, name, value)
    if number < 1:
        _refuse(name, "at least 1", str(value))
    return number


def _as_autocast(*operands: Tensor | None) -> list[Any]:
    """As autocast has those of a linear layer."""
    device = operands[0].device.type  # type: ignore[union-attr]
    if not torch.is_autocast_enabled(device):
        return list(operands)
    dtype = torch.get_autocast_dtype(device)
    return [
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in operands
    ]


def _check_operands(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
    operands = {"hidden": hidden, "weight": weight, **({} if bias is None else {"bias": bias})}
    for name, value in operands.items():
        if hasattr(value, "device_mesh"):
            _refuse(
                name,
                "a tensor of one process (within the forward of its module FSDP has gathered it: "
                "cpfast.ScoredLMHead)",
                "a DTensor",
            )
    if hidden.dim() not in (2, 3):
        _refuse("hidden", "shape [N, D] or [B, T, D]", str(list(hidden.shape)))
    if not hidden.is_floating_point():
        _refuse("hidden", "float32, float64, float16 or bfloat16", str(hidden.dtype))
    width = hidden.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width or not len(weight):
        _refuse("weight", f"shape [V, {width}]", str(list(weight.shape)))
    if bias is not None and bias.shape != weight.shape[:1]:
        _refuse("bias", f"shape [{len(weight)}]", str(list(bias.shape)))
    if target.shape != hidden.shape[:-1]:
        _refuse("target", f"shape {list(hidden.shape[:-1])}", str(list(target.shape)))
    if target.dtype not in CLASSES:
        _refuse("target", "classes of an integer dtype", str(target.dtype))
    for name, value in operands.items():
        if value.dtype != hidden.dtype:
            _refuse(name, f"{hidden.dtype}, as hidden", str(value.dtype))
    for name, value in {**operands, "target": target}.items():
        if value.device != hidden.device:
            _refuse(name, f"device {hidden.device}, as hidden", str(value.device))


class _ScoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        factor: Tensor | None,
        table: Tensor | None,
        index: Tensor | None,
        score: int,
        class_weight: Tensor | None,
        options: tuple[float, float, int, float, float, int, int],
        wanted: tuple[bool, bool, bool],
        is_reduced: bool,
        in_forward: bool,
    ) -> tuple[Tensor, Tensor]:
        given = factor
        if not (in_forward and any(wanted)):
            given, wanted_now = None, (False, False, False)
        else:
            wanted_now = wanted
            if factor is None:
                given = torch.ones(len(hidden), dtype=_real(hidden), device=hidden.device)
        losses, scores, *grads = OPS.scored_linear_cross_entropy(
            hidden, weight, target, given, bias, table, index, score, class_weight, *options,
            *wanted_now,
        )  # fmt: skip
        ctx.mark_non_differentiable(scores)
        ctx.set_materialize_grads(False)
        ctx.in_forward, ctx.wanted = in_forward, wanted
        if in_forward:
            ctx.dtype = hidden.dtype
            ctx.save_for_backward(*grads)
        else:
            ctx.options = options
            ctx.save_for_backward(hidden, weight, bias, target, factor, class_weight)
        loss = losses if factor is None else losses * factor
        return loss.sum() if is_reduced else loss, scores

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        unused = (None,) * 10
        if grad_loss is None:
            return None, None, None, *unused
        if torch.is_grad_enabled():
            raise RuntimeError(f"cpfast::{_OP}: its second derivative is not implemented")
        if ctx.in_forward:
            if getattr(ctx, "spent", False):
                raise RuntimeError(
                    f"cpfast::{_OP}: a second backward pass: its gradient was computed in the "
                    "forward pass and has been used; use gradient='backward'"
                )
            ctx.spent = True
            grads, dtype = ctx.saved_tensors, ctx.dtype
            for grad, is_wanted in zip(grads, ctx.wanted, strict=True):
                if is_wanted:
                    OPS.rescale_gradient(grad, grad_loss.to(_real(grad)).contiguous())
        else:
            hidden, weight, bias, target, factor, class_weight = ctx.saved_tensors
            dtype = hidden.dtype
            above = grad_loss.flatten().expand(len(hidden))
            _, _, *grads = OPS.scored_linear_cross_entropy(
                hidden, weight, target, above if factor is None else above * factor, bias,
                None, None, 0, class_weight, *ctx.options, *ctx.wanted,
            )  # fmt: skip
        of_hidden, of_weight, of_bias = (
            grad.to(dtype) if is_wanted else None
            for grad, is_wanted in zip(grads, ctx.wanted, strict=True)
        )
        return of_hidden, of_weight, None if of_bias is None else of_bias[0], *unused


def _counted(class_weight: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """The sum of the class weights of the rows that are kept; a wrong target is found later."""
    classes = target.flatten().clamp(0, len(class_weight) - 1)
    return torch.where(kept, class_weight[classes], 0.0).sum()


def _real(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
