"""Cross-entropy, its gradient, and the scores of its samples, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_devices, check_tensors, real, whole
from cpfast.results import ScoredLoss

__all__ = ["scored_cross_entropy"]

# As the compiled op counts them.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
SCORES = {"loss": 0, "el2n": 1, "margin": 2, "correct": 3}
_GRADIENTS = ("backward", "forward", "inplace")


def scored_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "none",
    gradient: str = "backward",
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    """Cross-entropy and the scores that data pruning needs, from one pass over the logits.

    As ``torch.nn.functional.cross_entropy``, except that ``weight`` is per sample, not per class,
    and that classes come last. The loss of confident samples keeps its digits where log-softmax
    rounds to 0.

    Args:
        input: [N, C] logits, or [B, T, C] for sequences of tokens; float32, float64, float16 or
            bfloat16. Rows may be far apart, as in ``logits[:, :-1]``; they are not copied.
        target: [N] or [B, T] int64 or int32, classes in [0, C) or ``ignore_index``.
        weight: optional, as target, or [B] for sequences, or [N, 1] or [B, 1]; multiplies the
            loss. No gradient flows into it. With as many samples as classes only the last two, for
            a weight of that length is one per class in ``torch.nn.functional.cross_entropy``.
        label_smoothing: in [0, 1].
        ignore_index: rows with this target have loss, scores and gradient 0. -2**63 promises that
            there are none, and saves CUDA from counting them before it writes a mean's gradient.
        reduction: "none"; "mean", the weighted losses' sum over the number of rows that are not
            ignored; or "sum".
        gradient: when it is computed. "backward": then, from the logits, which are kept.
            "forward": with the loss, at one exponential a logit instead of two; the backward pass
            only multiplies it by what comes from above, which is skipped where that is 1.
            "inplace": the same, written over the logits, which nobody may read afterwards
            (autograd notices where it does; under torch.compile it is "forward"); not of a leaf,
            whose gradient would share its memory. With the last two a second backward pass, or one
            with create_graph, is an error (not under torch.compile), and float16 logits are
            refused, for a loss scale comes too late to save their small gradients.
        table: optional [M] float32, written in place: ``table[index]`` becomes the samples' score.
            Of equal indices the last one's. A sequence's is the mean over its tokens that are not
            ignored. Of ignored samples nothing is written.
        index: [N] or [B] int64 or int32 in [0, M), which samples these are; with ``table``.
        score: what is written there: "loss" (without its weight), "el2n", "margin" or "correct".

    Returns:
        :class:`ScoredLoss`, each as target, in float32 (loss float64 for float64 logits):
        ``loss`` (reduced to [] where asked; differentiable once in ``input``), ``el2n``,
        ``margin``, ``correct``.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values; for a target or index out of
            range on the CPU. On CUDA, where an error would cost a synchronisation, such a target
            makes its row NaN, and such an index stops the device, as torch's own indexing does.
            Within torch.func's transforms.
        TypeError: for an argument of another type.

    Sources: EL2N, Paul et al. (arXiv 2107.07075); margin, Pleiss et al. (arXiv 2001.10528); the
    gradient in the forward pass, Liger-Kernel (arXiv 2410.10989).
    """
    if isinstance(weight, Tensor) and isinstance(input, Tensor) and input.dim() in (2, 3):
        samples, classes = input.shape[0], input.shape[-1]
        if weight.dim() == 1 and len(weight) == samples == classes > 1:
            raise RuntimeError(
                f"cpfast::scored_cross_entropy: weight: of shape [{classes}] it may be one per "
                "class, as torch has it, with as many samples as classes; one per sample is "
                f"weight[:, None], of shape [{samples}, 1]"
            )
    return scored_rows(
        input,
        target,
        weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        gradient=gradient,
        table=table,
        index=index,
        score=score,
    )


def scored_rows(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "none",
    gradient: str = "backward",
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    """:func:`scored_cross_entropy` whose weight is one a sample or row, whatever its length."""
    if reduction not in tuple(REDUCTIONS):
        _refuse("reduction", REDUCTIONS, reduction)
    if score not in tuple(SCORES):
        _refuse("score", SCORES, score)
    if gradient not in _GRADIENTS:
        _refuse("gradient", _GRADIENTS, gradient)
    op = "scored_cross_entropy"
    check_tensors(op, input=input, target=target)
    if weight is not None:
        check_tensors(op, weight=weight)
    if (table is None) != (index is None):
        missing, given = ("index", "table") if index is None else ("table", "index")
        raise RuntimeError(f"cpfast::{op}: {missing}: expected one, as {given} is given; got None")
    if table is not None:
        check_tensors(op, table=table, index=index)
    label_smoothing = real(op, "label_smoothing", label_smoothing)
    ignore_index = whole(op, "ignore_index", ignore_index)
    if forward_ad.unpack_dual(input).tangent is not None:
        raise RuntimeError(
            "cpfast::scored_cross_entropy: input: forward-mode derivatives are not implemented"
        )
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "cpfast::scored_cross_entropy: input: torch.func's transforms are not implemented for "
            "it; within them use torch.nn.functional.cross_entropy, and record_scores outside"
        )
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "cpfast::scored_cross_entropy: weight: requires a gradient, but none is computed for "
            "it; pass weight.detach()"
        )
    if input.dim() == 3 and target.shape == (input.shape[0], input.shape[2]) != input.shape[:2]:
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: input: expected classes last, {list(target.shape)} "
            f"before them as in target, got {list(input.shape)}; give input.transpose(1, 2)"
        )
    if weight is not None:
        weight = as_rows(weight, target)
    if REFERENCE:
        return reference.scored_cross_entropy(
            input,
            target,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
            table=table,
            index=index,
            score=score,
        )
    _backend.require_kernels("scored_cross_entropy", "input", input.device)
    if weight is not None:
        weight = weight.to(_compute_dtype(input)).contiguous()
    if target.dtype == torch.int32:
        target = target.long()
    if index is not None:
        index = index.contiguous() if index.dtype != torch.int32 else index.long()
    if not (input.requires_grad and torch.is_grad_enabled()):
        gradient = "backward"  # which never comes
    elif gradient != "backward" and input.dtype == torch.float16:
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: gradient: {gradient!r} is refused for float16 logits: "
            "a loss scale would come too late; use 'backward', or logits.float()"
        )
    elif gradient == "inplace" and (is_compiling or input.numel() == 0):
        gradient = "forward"
    elif gradient == "inplace" and input.is_leaf:
        raise RuntimeError(
            "cpfast::scored_cross_entropy: gradient: 'inplace' is refused for logits that are a "
            "leaf: their gradient would share their memory; use 'forward'"
        )
    options = (float(label_smoothing), ignore_index, REDUCTIONS[reduction])
    loss, scores = _ScoredCrossEntropy.apply(
        input, target.contiguous(), weight, table, index, options, gradient, SCORES[score]
    )
    if table is not None:
        torch.autograd.graph.increment_version(table)
    if input.dim() == 3:
        scores = scores.view(3, *target.shape)
    return ScoredLoss(loss, *scores.unbind())


def as_rows(weight: Tensor, target: Tensor) -> Tensor:
    """As the target, where it is one a sample, [B] or [B, 1]; else as it is."""
    if weight.shape == target.shape or target.dim() == 0:
        return weight
    samples = len(target)
    if weight.shape not in ((samples,), (samples, 1)):
        return weight
    return weight.reshape(samples, *(1,) * (target.dim() - 1)).expand_as(target)


def _refuse(name: str, expected: Any, value: Any) -> None:
    raise RuntimeError(
        f"cpfast::scored_cross_entropy: {name}: expected one of {tuple(expected)}, got {value!r}"
    )


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


class _ScoredCrossEntropy(torch.autograd.Function):
    # Not torch.library.register_autograd, which allows no op that writes to its arguments, and
    # costs 20 us more a call.

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        table: Tensor | None,
        index: Tensor | None,
        options: tuple[float, int, int],
        gradient: str,
        score: int,
    ) -> tuple[Tensor, Tensor]:
        grad = None
        if gradient == "forward":
            grad = torch.empty_like(input, memory_format=torch.contiguous_format)
        elif gradient == "inplace":
            grad = input
        loss, scores, softmax_stats = OPS.scored_cross_entropy.default(
            input, target, weight, *options, grad, table, index, score
        )
        ctx.mark_non_differentiable(scores)
        ctx.set_materialize_grads(False)
        ctx.in_forward = grad is not None
        if grad is None:
            ctx.save_for_backward(input, target, softmax_stats, weight)
            ctx.options = options
        else:
            if gradient == "inplace":
                torch.autograd.graph.increment_version(input)
            ctx.save_for_backward(grad.detach())
        return loss, scores

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        unused = (None,) * 7
        if grad_loss is None:
            return None, *unused
        if ctx.in_forward:
            return _rescaled(ctx, grad_loss), *unused
        input, target, softmax_stats, weight = ctx.saved_tensors
        grad = OPS.scored_cross_entropy_backward(
            grad_loss.contiguous(), input, target, softmax_stats, weight, *ctx.options
        )
        return grad, *unused


def _rescaled(ctx: Any, factor: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError("cpfast::scored_cross_entropy: its second derivative is not implemented")
    (grad,) = ctx.saved_tensors
    if getattr(ctx, "spent", False):
        raise RuntimeError(
            "cpfast::scored_cross_entropy: a second backward pass: its gradient was computed in "
            "the forward pass and has been used; use gradient='backward'"
        )
    ctx.spent = True
    OPS.rescale_gradient(grad, factor.contiguous())
    return grad


if not REFERENCE:

    @torch.library.register_fake("cpfast::scored_cross_entropy")
    def _(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: int = 0,
        grad: Tensor | None = None,
        table: Tensor | None = None,
        index: Tensor | None = None,
        score: int = 0,
    ) -> tuple[Tensor, ...]:
        check_devices(
            "scored_cross_entropy",
            input=input,
            target=target,
            weight=weight,
            table=table,
            index=index,
        )
        rows, real = target.numel(), _compute_dtype(input)
        return (
            input.new_empty(() if reduction else target.shape, dtype=real),
            input.new_empty((3, rows), dtype=torch.float32),
            input.new_empty((rows + 1 if grad is None else 0, 2), dtype=real),
        )

    @torch.library.register_fake("cpfast::scored_cross_entropy_backward")
    def _(grad_loss: Tensor, input: Tensor, *unused: Any) -> Tensor:
        return input.new_empty(input.shape)

    @torch.library.register_fake("cpfast::rescale_gradient")
    def _(grad: Tensor, factor: Tensor) -> None:
        check_devices("rescale_gradient", grad=grad, factor=factor)

    def refuse(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("cpfast::scored_cross_entropy: its second derivative is not implemented")

    torch.library.register_autograd("cpfast::scored_cross_entropy_backward", refuse)
