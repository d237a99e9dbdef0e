"""Cross-entropy and the scores of its samples, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_devices
from cpfast.results import ScoredLoss

__all__ = ["scored_cross_entropy"]


def scored_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> ScoredLoss:
    """Cross-entropy and the scores that data pruning needs, from one pass over the logits.

    As ``torch.nn.functional.cross_entropy(..., reduction="none")``, except that ``weight`` is per
    sample, not per class. The loss of confident samples keeps its digits where log-softmax
    rounds to 0.

    Args:
        input: [N, C] logits; float32, float64, float16 or bfloat16.
        target: [N] int64, classes in [0, C) or ``ignore_index``.
        weight: optional [N], multiplies the loss; no gradient flows into it.
        label_smoothing: in [0, 1].
        ignore_index: rows with this target have loss, scores and gradient 0.

    Returns:
        :class:`ScoredLoss` of [N] float32 (loss float64 for float64 logits): ``loss``
        (differentiable once in ``input``), ``el2n``, ``margin``, ``correct``.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values; for a target out of range on
            the CPU. On CUDA such a row becomes NaN, because an error would cost a synchronisation.

    Sources: EL2N, Paul et al. (arXiv 2107.07075); margin, Pleiss et al. (arXiv 2001.10528).
    """
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "cpfast::scored_cross_entropy: weight: requires a gradient, but none is computed for "
            "it; pass weight.detach()"
        )
    if forward_ad.unpack_dual(input).tangent is not None:
        raise RuntimeError(
            "cpfast::scored_cross_entropy: input: forward-mode derivatives are not implemented"
        )
    if REFERENCE:
        return reference.scored_cross_entropy(
            input,
            target,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
    _backend.require_kernels("scored_cross_entropy", "input", input.device)
    if weight is not None:
        weight = weight.to(_compute_dtype(input)).contiguous()
    out = OPS.scored_cross_entropy(
        input, target.contiguous(), weight, float(label_smoothing), ignore_index
    )
    return ScoredLoss(*out[:4])


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


if not REFERENCE:

    @torch.library.register_fake("cpfast::scored_cross_entropy")
    def _(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> tuple[Tensor, ...]:
        check_devices("scored_cross_entropy", input=input, target=target, weight=weight)
        rows, real = input.shape[0], _compute_dtype(input)
        scores = [input.new_empty(rows, dtype=torch.float32) for _ in range(3)]
        return (
            input.new_empty(rows, dtype=real),
            *scores,
            input.new_empty((rows, 2), dtype=real),
        )

    @torch.library.register_fake("cpfast::scored_cross_entropy_backward")
    def _(grad_loss: Tensor, input: Tensor, *unused: Any) -> Tensor:
        return input.new_empty(input.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, weight, label_smoothing, ignore_index = inputs
        ctx.save_for_backward(input, target, output[4], weight)
        ctx.label_smoothing, ctx.ignore_index = label_smoothing, ignore_index
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None, None
        input, target, softmax_stats, weight = ctx.saved_tensors
        grad = OPS.scored_cross_entropy_backward(
            grad_loss.contiguous(),
            input,
            target,
            softmax_stats,
            weight,
            ctx.label_smoothing,
            ctx.ignore_index,
        )
        return grad, None, None, None, None

    def refuse(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("cpfast::scored_cross_entropy: its second derivative is not implemented")

    torch.library.register_autograd(
        "cpfast::scored_cross_entropy", backward, setup_context=setup_context
    )
    torch.library.register_autograd("cpfast::scored_cross_entropy_backward", refuse)
