"""Typed functions over ``torch.ops.cpfast.*``, with their fake kernels and autograd.

One call serves all layers or all samples, never copies to the host, and is deterministic. Errors
of shape, dtype, device and value are raised as RuntimeError at the C++ boundary, and name the
argument and its value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cpfast import _backend, reference
from cpfast.results import LayerStatistics, ScoredLoss, Selection

__all__ = [
    "LayerStatistics",
    "ScoredLoss",
    "Selection",
    "layer_rotation",
    "layer_statistics",
    "record_scores",
    "scored_cross_entropy",
    "select_samples",
]

_REFERENCE = _backend.NATIVE is None
_ops = torch.ops.cpfast


def _layer_arguments(
    op: str,
    params: Iterable[Tensor],
    refs: Iterable[Tensor],
    ref_sq_norms: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    # An empty list never reaches the C++ checks: the dispatcher finds no device in it.
    for name, tensors in (("params", params), ("refs", refs)):
        if isinstance(tensors, Tensor):
            raise TypeError(
                f"cpfast::{op}: {name}: expected a list of tensors, one a layer, got a tensor of "
                f"shape {list(tensors.shape)}"
            )
    weights, references = list(params), list(refs)
    if not weights:
        raise RuntimeError(f"cpfast::{op}: params: expected at least one tensor, got an empty list")
    if not references:
        raise RuntimeError(
            f"cpfast::{op}: refs: expected {len(weights)} tensors, as many as params, got 0"
        )
    if not _REFERENCE:
        _backend.require_kernels(op, "params[0]", weights[0].device)
    if ref_sq_norms is not None and ref_sq_norms.dtype == torch.float32:
        ref_sq_norms = ref_sq_norms.double()
    return weights, references, ref_sq_norms


@torch.no_grad()
def layer_rotation(
    params: Iterable[Tensor], refs: Iterable[Tensor], ref_sq_norms: Tensor | None = None
) -> Tensor:
    """Cosine distance of each layer's weights from a reference, usually their initialisation.

    Accurate to about 1e-6 relative even for distances of 1e-12, because it sums differences, not
    products. Not differentiable: the result never requires a gradient.

    Args:
        params: L tensors of float32, float64, float16 or bfloat16, any shapes and strides.
        refs: L tensors of the same shapes; dtypes may differ.
        ref_sq_norms: optional [L] float64 (float32 is converted), the sum of squares of each
            reference, else computed in the same pass.

    Returns:
        [L] float32, 1 - cos(w, w0), in [0, 2]; 0 where w and w0 are both zero or empty, 1 where
        one of them is zero, NaN where the layer holds NaN or Inf.

    Raises:
        RuntimeError: for empty or mismatched lists, shapes, dtypes or devices.

    Source: layer rotation, Carbonnelle & De Vleeschouwer (arXiv 1806.01603).
    """
    arguments = _layer_arguments("layer_rotation", params, refs, ref_sq_norms)
    if _REFERENCE:
        return reference.layer_rotation(*arguments)
    return _ops.layer_rotation(*arguments)


@torch.no_grad()
def layer_statistics(
    params: Iterable[Tensor], refs: Iterable[Tensor], ref_sq_norms: Tensor | None = None
) -> LayerStatistics:
    """Rotation, distance, norm, sign flips and magnitude of each layer, in one pass.

    Arguments, errors and source are those of :func:`layer_rotation`; the other statistics are
    those of "The Early Phase of Neural Network Training" (arXiv 2002.10365).

    Returns:
        :class:`LayerStatistics` of [L] float32: ``cosine_distance``, ``l2_distance``, ``norm``,
        ``sign_flips`` (a fraction; a zero of either sign never flips), ``mean_abs``.
    """
    arguments = _layer_arguments("layer_statistics", params, refs, ref_sq_norms)
    if _REFERENCE:
        return reference.layer_statistics(*arguments)
    return LayerStatistics(*_ops.layer_statistics(*arguments).unbind())


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
    if _REFERENCE:
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
    out = _ops.scored_cross_entropy(
        input, target.contiguous(), weight, float(label_smoothing), ignore_index
    )
    return ScoredLoss(*out[:4])


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
    """InfoBatch's selection: all samples that score at or above the mean, and some below it.

    Of the M samples below the mean of the finite scores, exactly floor(keep * M) are drawn at
    random, and their weight is 1 / keep, so that the expected gradient is that of all samples.
    Samples whose score is NaN or inf are kept.

    The draw is a function of the scores and the numbers alone: the same on every device, rank
    and thread count, and nothing needs saving to repeat it.

    Args:
        scores: [N] float32.
        keep: share of the below-mean samples to keep, in (0, 1].
        seed, epoch, stream: integers; each triple is a draw of its own.
        shuffle: whether the indices come in random order rather than ascending.

    Returns:
        :class:`Selection`; its first ``count`` indices are the selection.

    Raises:
        RuntimeError: for a wrong shape, dtype or ``keep``.

    Source: InfoBatch, Qin et al. (arXiv 2303.04947).
    """
    if _REFERENCE:
        return reference.select_samples(
            scores, keep=keep, seed=seed, epoch=epoch, stream=stream, shuffle=shuffle
        )
    _backend.require_kernels("select_samples", "scores", scores.device)
    return Selection(*_ops.select_samples(scores, float(keep), seed, epoch, stream, shuffle))


@torch.no_grad()
def record_scores(scores: Tensor, index: Tensor, values: Tensor) -> None:
    """Writes ``scores[index] = values`` in place; of equal indices the last one wins.

    Args:
        scores: [N] float32, contiguous; written.
        index: [B] int64 in [0, N).
        values: [B]; converted to float32.

    Raises:
        RuntimeError: for wrong shapes, dtypes or devices, or an index out of range (on the CPU;
            on CUDA that stops the device, as torch's own indexing does).
    """
    values = values.detach().to(torch.float32).contiguous()
    if _REFERENCE:
        reference.record_scores(scores, index, values)
        return
    _backend.require_kernels("record_scores", "scores", scores.device)
    _ops.record_scores(scores, index.contiguous(), values)
    torch.autograd.graph.increment_version(scores)


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _check_devices(op: str, **tensors: Tensor | None) -> None:
    # One meta tensor sends the whole call to the fake kernel, whatever the others are.
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise RuntimeError(f"cpfast::{op}: expected one device, got {found}")


def _check_layer_devices(op: str, params: list[Tensor], refs: list[Tensor]) -> None:
    layers = {f"params[{i}]": p for i, p in enumerate(params)}
    _check_devices(op, **layers, **{f"refs[{i}]": r for i, r in enumerate(refs)})


def _register_fakes() -> None:
    @torch.library.register_fake("cpfast::layer_statistics")
    def _(params: list[Tensor], refs: list[Tensor], ref_sq_norms: Tensor | None = None) -> Tensor:
        _check_layer_devices("layer_statistics", params, refs)
        return params[0].new_empty((5, len(params)), dtype=torch.float32)

    @torch.library.register_fake("cpfast::layer_rotation")
    def _(params: list[Tensor], refs: list[Tensor], ref_sq_norms: Tensor | None = None) -> Tensor:
        _check_layer_devices("layer_rotation", params, refs)
        return params[0].new_empty((len(params),), dtype=torch.float32)

    @torch.library.register_fake("cpfast::scored_cross_entropy")
    def _(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> tuple[Tensor, ...]:
        _check_devices("scored_cross_entropy", input=input, target=target, weight=weight)
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

    @torch.library.register_fake("cpfast::select_samples")
    def _(scores: Tensor, *unused: Any, **also_unused: Any) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.empty_like(scores, dtype=torch.int64)
        return indices, torch.empty_like(scores), scores.new_empty((), dtype=torch.int64)

    @torch.library.register_fake("cpfast::record_scores")
    def _(scores: Tensor, index: Tensor, values: Tensor) -> None:
        _check_devices("record_scores", scores=scores, index=index, values=values)


def _register_autograd() -> None:
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
        grad = _ops.scored_cross_entropy_backward(
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


if not _REFERENCE:
    _register_fakes()
    _register_autograd()
