"""What the losses that are means over a sample's elements share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cpfast import _backend
from cpfast.ops._common import OPS, REFERENCE, check_devices, check_tensors
from cpfast.ops._scored_cross_entropy import REDUCTIONS, SCORES

__all__ = ["check_arguments", "compute_dtype", "scored"]

GRADIENTS = ("backward", "forward")


def check_arguments(
    op: str,
    instead: str,
    scores: tuple[str, ...],
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    reduction: str,
    gradient: str,
    table: Tensor | None,
    index: Tensor | None,
    score: str,
    pos_weight: Tensor | None = None,
) -> None:
    """What the compiled op does not look at; ``instead`` is torch's own loss.

    Raises:
        TypeError, RuntimeError: naming the argument.
    """
    for name, expected, value in (
        ("reduction", tuple(REDUCTIONS), reduction),
        ("score", scores, score),
        ("gradient", GRADIENTS, gradient),
    ):
        if value not in expected:
            _fail(op, f"{name}: expected one of {expected}, got {value!r}")
    check_tensors(op, input=input, target=target)
    if (table is None) != (index is None):
        missing, given = ("index", "table") if index is None else ("table", "index")
        _fail(op, f"{missing}: expected one, as {given} is given; got None")
    if table is not None:
        check_tensors(op, table=table, index=index)
    if forward_ad.unpack_dual(input).tangent is not None:
        _fail(op, "input: forward-mode derivatives are not implemented")
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._functorch.peek_interpreter_stack() is not None:
        _fail(
            op,
            "input: torch.func's transforms are not implemented for it; within them use "
            f"{instead}, and record_scores outside",
        )
    constants = {"target": target, "weight": weight, "pos_weight": pos_weight}
    for name, tensor in constants.items():
        if tensor is None:
            continue
        check_tensors(op, **{name: tensor})
        if tensor.requires_grad and torch.is_grad_enabled():
            _fail(
                op,
                f"{name}: requires a gradient, but none is computed for it; pass {name}.detach()",
            )
    if target.shape != input.shape:
        _fail(
            op,
            f"target: expected shape {list(input.shape)} as input, got {list(target.shape)}",
        )
    if input.dim() == 0:
        _fail(op, "input: expected shape [N, ...], got []")
    if weight is not None and weight.dim() == 1 and input.dim() > 1:
        samples, elements = len(input), input.shape[-1]
        if len(weight) == samples == elements > 1:
            _fail(
                op,
                f"weight: of shape [{elements}] it may be one per element, as torch has it, with "
                f"as many samples as elements; one per sample is weight[:, None], of shape "
                f"[{samples}, 1]",
            )
    if weight is not None and weight.shape not in ((len(input),), (len(input), 1)):
        n = len(input)
        _fail(op, f"weight: expected shape [{n}] or [{n}, 1], got {list(weight.shape)}")


def scored(
    op: str,
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    reduction: str,
    gradient: str,
    table: Tensor | None,
    index: Tensor | None,
    score: str,
    pos_weight: tuple[Tensor | None, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The loss and, a row each, the scores, of arguments that were checked.

    Args:
        target: of input's dtype or :func:`compute_dtype`.
        pos_weight: one, or none where the op has no such argument.
    """
    _backend.require_kernels(op, "input", input.device)
    wide = compute_dtype(input)
    if weight is not None:
        weight = weight.reshape(-1).to(wide).contiguous()
    if index is not None:
        index = index.contiguous() if index.dtype != torch.int32 else index.long()
    if not (input.requires_grad and torch.is_grad_enabled()):
        gradient = "backward"  # which never comes
    elif gradient == "forward" and input.dtype == torch.float16:
        _fail(
            op,
            "gradient: 'forward' is refused for a float16 input: a loss scale would come too late; "
            "use 'backward', or input.float()",
        )
    loss, scores = _Scored.apply(
        op, REDUCTIONS[reduction], gradient, SCORES[score], table, index, input, target, weight,
        *pos_weight,
    )  # fmt: skip
    if table is not None:
        torch.autograd.graph.increment_version(table)
    return loss, scores


def compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _fail(op: str, message: str) -> None:
    raise RuntimeError(f"cpfast::{op}: {message}")


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        op: str,
        reduction: int,
        gradient: str,
        score: int,
        table: Tensor | None,
        index: Tensor | None,
        *operands: Any,
    ) -> tuple[Tensor, Tensor]:
        input = operands[0]
        grad = None
        if gradient == "forward":
            grad = torch.empty_like(input, memory_format=torch.contiguous_format)
        loss, scores = getattr(OPS, op).default(*operands, reduction, grad, table, index, score)
        ctx.mark_non_differentiable(scores)
        ctx.set_materialize_grads(False)
        ctx.op, ctx.reduction, ctx.in_forward = op, reduction, grad is not None
        ctx.unused = (None,) * (5 + len(operands))
        if grad is None:
            ctx.save_for_backward(*operands)
        else:
            ctx.save_for_backward(grad.detach())
        return loss, scores

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        before, after = (None,) * 6, ctx.unused[6:]
        if grad_loss is None:
            return *before, None, *after
        if ctx.in_forward:
            return *before, _rescaled(ctx, grad_loss), *after
        op = getattr(OPS, f"{ctx.op}_backward")
        grad = op(grad_loss.contiguous(), *ctx.saved_tensors, ctx.reduction)
        return *before, grad, *after


def _rescaled(ctx: Any, factor: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        _fail(ctx.op, "its second derivative is not implemented")
    (grad,) = ctx.saved_tensors
    if getattr(ctx, "spent", False):
        _fail(
            ctx.op,
            "a second backward pass: its gradient was computed in the forward pass and has been "
            "used; use gradient='backward'",
        )
    ctx.spent = True
    rows = grad[:, None] if grad.dim() == 1 else grad.flatten(1)
    OPS.rescale_gradient(rows, factor.contiguous())
    return grad


def _register(op: str, scores: int) -> None:
    @torch.library.register_fake(f"cpfast::{op}")
    def _(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        names = ["weight", *(["pos_weight"] if scores == 3 else [])]
        names += ["reduction", "grad", "table", "index", "score"]
        given = dict(zip(names, others, strict=False))
        reduction = given.pop("reduction", 0)
        given.pop("score", None)
        check_devices(op, input=input, target=target, **given)
        return (
            input.new_empty(() if reduction else input.shape[:1], dtype=compute_dtype(input)),
            input.new_empty((scores, input.shape[0]), dtype=torch.float32),
        )

    @torch.library.register_fake(f"cpfast::{op}_backward")
    def _(grad_loss: Tensor, input: Tensor, *unused: Any) -> Tensor:
        return input.new_empty(input.shape)

    def refuse(ctx: Any, grad: Tensor) -> None:
        _fail(op, "its second derivative is not implemented")

    torch.library.register_autograd(f"cpfast::{op}_backward", refuse)


if not REFERENCE:
    _register("scored_binary_cross_entropy", 3)
    _register("scored_mse", 1)
