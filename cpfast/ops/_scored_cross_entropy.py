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
_REDUCTIONS, _SCORES = tuple(REDUCTIONS), tuple(SCORES)
_GRADIENTS = ("backward", "forward", "inplace")
CLASSES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def scored_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    class_dim: int = -1,
    reduction: str = "none",
    gradient: str = "backward",
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    """Cross-entropy and the scores that data pruning needs, from one pass over the logits.

    As ``torch.nn.functional.cross_entropy``, except that ``weight`` is per sample, and torch's is
    ``class_weight``, and that classes come last where ``class_dim`` does not say otherwise. The
    loss of confident samples keeps its digits where log-softmax rounds to 0.

    Args:
        input: [N, C] logits; [B, ..., C] for samples of many rows, such as sequences of tokens
            [B, T, C]; or [C], of one; float32, float64, float16 or bfloat16. Rows may be far apart,
            as in ``logits[:, :-1]``; they are not copied.
        target: classes in [0, C) or ``ignore_index``, shaped as input without C: int64, int32,
            int16, int8 or uint8. Or distributions over the classes, shaped as input: floating,
            computed in the losses' dtype; no row is ignored then, and no gradient flows into them.
        weight: optional, one a row, shaped as input without C, or [B] for samples of many rows, or
            [N, 1] or [B, 1]; multiplies the loss. No gradient flows into it. With as many samples
            as classes only the last two, for a weight of that length is one per class in
            ``torch.nn.functional.cross_entropy``.
        class_weight: optional [C], multiplies each class's term. No gradient flows into it.
        label_smoothing: in [0, 1].
        z_loss: at least 0; that times the square of log(sum(exp(logits))) is added to each row's
            loss before ``weight``.
        ignore_index: rows with this target have loss, scores and gradient 0. -2**63 promises that
            there are none, and saves CUDA from counting them before it writes a mean's gradient.
        class_dim: which dimension of the input, and of distributions, C is: 1 for images
            [B, C, H, W], which are not copied (distributions are); -1 for the last.
        reduction: "none"; "mean", the weighted losses' sum over the number of rows that are not
            ignored, or over the sum of the class weights of their targets, as torch has it; or
            "sum".
        gradient: when it is computed. "backward": then, from the logits, which are kept.
            "forward": with the loss, at one exponential a logit instead of two; the backward pass
            only multiplies it by what comes from above, which is skipped where that is 1.
            "inplace": the same, written over the logits, which nobody may read afterwards
            (autograd notices where it does; under torch.compile it is "forward"); not of a leaf,
            whose gradient would share its memory. With the last two a second backward pass, or one
            with create_graph, is an error (not under torch.compile), and float16 logits are
            refused, for a loss scale comes too late to save their small gradients.
        table: optional [M] float32, written in place: ``table[index]`` becomes the samples' score.
            Of equal indices the last one's. That of a sample of many rows is the mean over those
            that are not ignored. Of ignored samples nothing is written.
        index: [N] or [B] int64 or int32 in [0, M), which samples these are; with ``table``.
        score: what is written there: "loss" (without weight and z_loss), "el2n", "margin" or
            "correct".

    Returns:
        :class:`ScoredLoss`, each shaped as input without C, in float32 (loss float64 for float64
        logits): ``loss`` (reduced to [] where asked; differentiable once in ``input``), ``el2n``,
        ``margin``, ``correct``. Of a distribution, EL2N is the distance of the softmax to it, and
        the other two are of its first largest class.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values; for a target or index out of
            range on the CPU. On CUDA, where an error would cost a synchronisation, such a target
            makes its row NaN, and such an index stops the device, as torch's own indexing does.
            Within torch.func's transforms.
        TypeError: for an argument of another type.

    Sources: EL2N, Paul et al. (arXiv 2107.07075); margin, Pleiss et al. (arXiv 2001.10528); the
    gradient in the forward pass, Liger-Kernel (arXiv 2410.10989); z_loss, PaLM (arXiv 2204.02311).
    """
    if isinstance(weight, Tensor) and isinstance(input, Tensor) and weight.dim() == 1:
        class_dim = whole("scored_cross_entropy", "class_dim", class_dim)
        _refuse_a_weight_of_classes(weight, input, class_dim)
    loss, scores = scored_rows(
        input,
        target,
        weight=weight,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        ignore_index=ignore_index,
        class_dim=class_dim,
        reduction=reduction,
        gradient=gradient,
        table=table,
        index=index,
        score=score,
    )
    return ScoredLoss(loss, *scores.unbind())


def scored_rows(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    weight_table: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    class_dim: int = -1,
    reduction: str = "none",
    gradient: str = "backward",
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> tuple[Tensor, Tensor]:
    """:func:`scored_cross_entropy` whose weight is one a sample or row, whatever its length.

    Of a small batch this is most of the time: nothing is looked at twice.

    Args:
        weight_table: [M] float32: in place of ``weight``, that of a sample is
            ``weight_table[index]``.

    Returns:
        The loss, and [3, ...]: EL2N, margin and correct.
    """
    op = "scored_cross_entropy"
    if reduction not in _REDUCTIONS:
        _refuse("reduction", REDUCTIONS, reduction)
    if score not in _SCORES:
        _refuse("score", SCORES, score)
    if gradient not in _GRADIENTS:
        _refuse("gradient", _GRADIENTS, gradient)
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        check_tensors(op, input=input, target=target)
    if (table is None and weight_table is None) != (index is None):
        missing, given = ("index", "table") if index is None else ("table", "index")
        raise RuntimeError(f"cpfast::{op}: {missing}: expected one, as {given} is given; got None")
    if index is not None:
        if table is not None:
            check_tensors(op, table=table)
        check_tensors(op, index=index)
        index = index.contiguous() if index.dtype != torch.int32 else index.long()
    label_smoothing = real(op, "label_smoothing", label_smoothing)
    z_loss = real(op, "z_loss", z_loss)
    ignore_index = whole(op, "ignore_index", ignore_index)
    class_dim = whole(op, "class_dim", class_dim)
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(input).tangent is not None:
        raise RuntimeError(f"cpfast::{op}: input: forward-mode derivatives are not implemented")
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"cpfast::{op}: input: torch.func's transforms are not implemented for it; within them "
            "use torch.nn.functional.cross_entropy, and record_scores outside"
        )
    has_classes = not target.is_floating_point()
    if has_classes:
        if target.dtype != torch.int64:
            target = _as_int64(target)
    elif ignore_index >= 0:
        raise RuntimeError(
            f"cpfast::{op}: ignore_index: expected none for distributions, of which no row is "
            f"ignored; got {ignore_index}"
        )
    dim, original = input.dim(), input
    if dim == 2 and class_dim == -1:
        shape = input.shape[:1]
    elif dim == 3 and class_dim == -1:
        shape = input.shape[:2]
        if has_classes:
            _refuse_classes_within(input, target)
    else:
        input, target, shape = _as_rows(input, target, class_dim)
    if weight is not None:
        weight = _weight_of_rows(weight, input, shape)
    if class_weight is not None:
        check_tensors(op, class_weight=class_weight)
        _check_gradient("class_weight", class_weight)
        class_weight = class_weight.to(_compute_dtype(input)).contiguous()
    if not has_classes:
        _check_gradient("target", target)
        if target.shape != input.shape:
            _refuse_distributions(input.shape, target)
        target = target.to(_compute_dtype(input))
    if REFERENCE:
        if weight_table is not None and index is not None:
            weight = as_rows(weight_table.index_select(0, index), input.shape[:-1])
        loss, *scores = reference.scored_cross_entropy(
            input,
            target,
            weight=weight,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            ignore_index=ignore_index,
            reduction=reduction,
            table=table,
            index=None if table is None else index,
            score=score,
        )
        return (
            loss if reduction != "none" else loss.view(shape),
            torch.stack([x.view(shape) for x in scores]),
        )
    _backend.require_kernels(op, "input", input.device)
    if not (input.requires_grad and torch.is_grad_enabled()):
        gradient = "backward"  # which never comes
    elif gradient != "backward":
        soft = _is_soft(target, class_weight, label_smoothing)
        gradient = _gradient_in_forward(gradient, input, original, soft, is_compiling)
    loss, scores = _ScoredCrossEntropy.apply(
        input,
        (
            target.contiguous(),
            weight,
            label_smoothing,
            ignore_index,
            REDUCTIONS[reduction],
            table,
            index,
            SCORES[score],
            class_weight,
            z_loss,
            weight_table,
        ),
        gradient,
    )
    if table is not None:
        torch.autograd.graph.increment_version(table)
    if len(shape) != 1:
        scores = scores.view(3, *shape)
        if reduction == "none":
            loss = loss.view(shape)
    return loss, scores


def _refuse_a_weight_of_classes(weight: Tensor, input: Tensor, class_dim: int) -> None:
    """Where it might be one: scored_rows refuses a class_dim that there is not."""
    dims = input.dim()
    if dims < 2 or not -dims <= class_dim < dims:
        return
    classes = input.shape[class_dim]
    samples = input.shape[1 if class_dim in (0, -dims) else 0]
    if len(weight) == samples == classes > 1:
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: weight: of shape [{classes}] it may be one per class, "
            "as torch has it, with as many samples as classes; that is class_weight; one per "
            f"sample is weight[:, None], of shape [{samples}, 1]"
        )


def _as_int64(target: Tensor) -> Tensor:
    if target.dtype not in CLASSES:
        raise RuntimeError(
            "cpfast::scored_cross_entropy: target: expected classes of an integer dtype, or "
            f"distributions over them, got {str(target.dtype).removeprefix('torch.')}"
        )
    return target.long()


def _check_gradient(name: str, given: Tensor) -> None:
    if given.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: {name}: requires a gradient, but none is computed for "
            f"it; pass {name}.detach()"
        )


def _weight_of_rows(weight: Tensor, input: Tensor, shape: torch.Size) -> Tensor:
    """One a row of the input, contiguous, in the losses' dtype."""
    check_tensors("scored_cross_entropy", weight=weight)
    _check_gradient("weight", weight)
    weight = as_rows(weight, shape)
    if weight.shape != shape:
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: weight: expected shape {list(shape)}, or one a sample, "
            f"got {list(weight.shape)}"
        )
    return weight.reshape(input.shape[:-1]).to(_compute_dtype(input)).contiguous()


def _gradient_in_forward(
    gradient: str, input: Tensor, original: Tensor, soft: bool, is_compiling: bool
) -> str:
    """Where it can be had: "forward" or "inplace". The input may be a view of the original."""
    if input.dtype == torch.float16:
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: gradient: {gradient!r} is refused for float16 logits: "
            "a loss scale would come too late; use 'backward', or logits.float()"
        )
    if gradient == "forward" or is_compiling or input.numel() == 0:
        return "forward"
    if soft and input.stride(-1) != 1:
        return "forward"  # rows that are copied
    if original.is_leaf:
        raise RuntimeError(
            "cpfast::scored_cross_entropy: gradient: 'inplace' is refused for logits that are a "
            "leaf: their gradient would share their memory; use 'forward'"
        )
    return gradient


def as_rows(weight: Tensor, shape: torch.Size) -> Tensor:
    """Of that shape, where it is one a sample, [B] or [B, 1]; else as it is."""
    if weight.shape == shape or not shape:
        return weight
    samples = shape[0]
    if weight.shape not in ((samples,), (samples, 1)):
        return weight
    return weight.reshape(samples, *(1,) * (len(shape) - 1)).expand(shape)


def _as_rows(input: Tensor, target: Tensor, class_dim: int) -> tuple[Tensor, Tensor, torch.Size]:
    """[N, C] or [B, T, C] with targets beside it, and the shape of what is returned."""
    op = "cpfast::scored_cross_entropy"
    if input.dim() == 0:
        raise RuntimeError(f"{op}: input: expected at least one dimension, of C logits")
    if not -input.dim() <= class_dim < input.dim():
        raise RuntimeError(
            f"{op}: class_dim: expected a dimension of input, of shape {list(input.shape)}, got "
            f"{class_dim}"
        )
    last = input.movedim(class_dim, -1)
    shape, classes = last.shape[:-1], last.shape[-1]
    if target.is_floating_point():
        if target.shape != input.shape:
            _refuse_distributions(input.shape, target)
        target = target.movedim(class_dim, -1)
    elif target.shape != shape:
        raise RuntimeError(
            f"{op}: target: expected shape {list(shape)}, one class for {classes} logits along "
            f"class_dim {class_dim} of input {list(input.shape)}, got {list(target.shape)}"
        )
    if last.dim() == 1:
        last, target = last[None], target[None]
    elif last.dim() > 3:
        last = last.flatten(1, -2)
        target = target.flatten(1, -2) if target.is_floating_point() else target.flatten(1)
    return last, target, shape


def _refuse_distributions(shape: torch.Size, target: Tensor) -> None:
    raise RuntimeError(
        f"cpfast::scored_cross_entropy: target: expected distributions of shape {list(shape)}, got "
        f"{list(target.shape)} of {str(target.dtype).removeprefix('torch.')}"
    )


def _refuse_classes_within(input: Tensor, target: Tensor) -> None:
    if target.shape == (input.shape[0], input.shape[2]) != input.shape[:2]:
        raise RuntimeError(
            f"cpfast::scored_cross_entropy: input: expected classes last, {list(target.shape)} "
            f"before them as in target, got {list(input.shape)}; give class_dim=1"
        )


def _refuse(name: str, expected: Any, value: Any) -> None:
    raise RuntimeError(
        f"cpfast::scored_cross_entropy: {name}: expected one of {tuple(expected)}, got {value!r}"
    )


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


class _ScoredCrossEntropy(torch.autograd.Function):
    # Not torch.library.register_autograd, which allows no op that writes to its arguments, and
    # costs 20 us more a call.

    # One tuple, for each argument of apply costs half a microsecond.

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, call: tuple[Any, ...], gradient: str
    ) -> tuple[Tensor, Tensor]:
        target, weight, smoothing, ignored, reduction, table, index, score, *by = call
        class_weight, z_loss, weight_table = by
        grad = None
        if gradient == "forward":
            grad = _empty_beside(input, _is_soft(target, class_weight, smoothing))
        elif gradient == "inplace":
            grad = input
        loss, scores, softmax_stats = OPS.scored_cross_entropy.default(
            input, target, weight, smoothing, ignored, reduction, grad, table, index, score, *by
        )
        ctx.mark_non_differentiable(scores)
        ctx.set_materialize_grads(False)
        ctx.in_forward = grad is not None
        if grad is None:
            of_samples = (weight_table, None if weight_table is None else index)
            ctx.save_for_backward(input, target, softmax_stats, weight, class_weight, *of_samples)
            ctx.options, ctx.z_loss = (smoothing, ignored, reduction), z_loss
        else:
            if gradient == "inplace":
                torch.autograd.graph.increment_version(input)
                grad = grad.detach()
            ctx.save_for_backward(grad)
        return loss, scores

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None
        if ctx.in_forward:
            return _rescaled(ctx, grad_loss), None, None
        input, target, softmax_stats, weight, class_weight, *of_samples = ctx.saved_tensors
        grad = OPS.scored_cross_entropy_backward(
            grad_loss.contiguous(), input, target, softmax_stats, weight, *ctx.options,
            class_weight, ctx.z_loss, *of_samples,
        )  # fmt: skip
        return grad, None, None


def _is_soft(target: Tensor, class_weight: Tensor | None, label_smoothing: float) -> bool:
    """As the compiled op has it: must each class's own share of the target be looked at?"""
    return target.is_floating_point() or (class_weight is not None and label_smoothing > 0)


def _empty_beside(input: Tensor, soft: bool) -> Tensor:
    """Uninitialised, with the logits of a class side by side where those of the input are."""
    is_strided = input.shape[-1] > 1 and input.stride(-1) != 1 and input.stride(-2) == 1
    if soft or not is_strided:
        return torch.empty_like(input, memory_format=torch.contiguous_format)
    last = input.transpose(-1, -2)
    return torch.empty_like(last, memory_format=torch.contiguous_format).transpose(-1, -2)


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
        class_weight: Tensor | None = None,
        z_loss: float = 0.0,
        weight_table: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        check_devices(
            "scored_cross_entropy",
            input=input,
            target=target,
            weight=weight,
            table=table,
            index=index,
            class_weight=class_weight,
            weight_table=weight_table,
        )
        real = _compute_dtype(input)
        rows = input[..., 0].numel()
        return (
            input.new_empty(() if reduction else input.shape[:-1], dtype=real),
            input.new_empty((3, rows), dtype=torch.float32),
            input.new_empty((rows + 1 if grad is None else 0, 2), dtype=real),
        )

    @torch.library.register_fake("cpfast::scored_cross_entropy_backward")
    def _(
        grad_loss: Tensor,
        input: Tensor,
        target: Tensor,
        softmax_stats: Tensor,
        weight: Tensor | None,
        label_smoothing: float,
        ignore_index: int,
        reduction: int,
        class_weight: Tensor | None = None,
        z_loss: float = 0.0,
        weight_table: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        return _empty_beside(input, _is_soft(target, class_weight, label_smoothing))

    @torch.library.register_fake("cpfast::rescale_gradient")
    def _(grad: Tensor, factor: Tensor) -> None:
        check_devices("rescale_gradient", grad=grad, factor=factor)

    def refuse(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("cpfast::scored_cross_entropy: its second derivative is not implemented")

    torch.library.register_autograd("cpfast::scored_cross_entropy_backward", refuse)
