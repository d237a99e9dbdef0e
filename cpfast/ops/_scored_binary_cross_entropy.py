"""Binary cross-entropy of many labels, its gradient, and the scores of its samples, in one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpfast import reference
from cpfast.ops._common import REFERENCE
from cpfast.ops._elementwise_loss import check_arguments, compute_dtype, scored
from cpfast.ops._scored_cross_entropy import SCORES
from cpfast.results import ScoredLoss

__all__ = ["scored_binary_cross_entropy"]

_OP = "scored_binary_cross_entropy"


def scored_binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "none",
    gradient: str = "backward",
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredLoss:
    """Binary cross-entropy over logits and the scores that data pruning needs, from one pass.

    As ``torch.nn.functional.binary_cross_entropy_with_logits``, except that a sample's loss is the
    mean over its labels, whose mean over the samples is torch's, and that ``weight`` is per sample.
    The loss of confident labels keeps its digits, and an infinite logit costs nothing where the
    target agrees with it.

    Args:
        input: [N, ...] logits of L labels a sample, [N] of one; float32, float64, float16 or
            bfloat16. Samples may be far apart; where labels are not side by side they are copied.
        target: as input, in [0, 1]: of any of these dtypes, bool or integers. Of input's dtype and
            float32 it is read as it is; others are converted before, float64 to float32 (not for
            float64 logits), and what is converted is kept for the backward pass.
        weight: optional, [N] or [N, 1]; multiplies a sample's loss. With as many samples as labels
            only the last one, for torch's may be one per label.
        pos_weight: optional, [L] or what broadcasts to input.shape[1:]: multiplies the loss of a
            label's positive part.
        reduction: "none": [N]; "mean", the weighted losses' sum over N; or "sum", of the N means.
        gradient: when it is computed. "backward": then, from input and target, which are kept.
            "forward": with the loss; the backward pass only multiplies it by what comes from above,
            which is skipped where that is 1. Then a second backward pass, or one with create_graph,
            is an error (not under torch.compile), and float16 logits are refused, for a loss scale
            comes too late to save their small gradients.
        table: optional [M] float32, written in place: ``table[index]`` becomes the samples' score.
            Of equal indices the last one's.
        index: [N] int64 or int32 in [0, M), which samples these are; with ``table``.
        score: what is written there: "loss" (without its weight), "el2n", "margin" or "correct".

    Returns:
        :class:`ScoredLoss`, each [N] float32 (loss float64 for float64 logits): ``loss`` (reduced
        to [] where asked; differentiable once in ``input``); ``el2n``, ``|sigmoid(x) - t|_2`` over
        the labels; ``margin``, the least over them of x where t >= .5, else of -x; ``correct``, 1
        where x > 0 just for the labels of t >= .5.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values; for a target or index out of
            range on the CPU. On CUDA, where an error would cost a synchronisation, such a target
            makes its label's gradient and its sample's loss and scores NaN, and such an index stops
            the device, as torch's own indexing does. Within torch.func's transforms.
        TypeError: for an argument of another type.

    Sources: EL2N and margin as in :func:`scored_cross_entropy`, over labels instead of classes.
    """
    options: dict[str, Any] = {
        "weight": weight, "reduction": reduction, "gradient": gradient, "table": table,
        "index": index, "score": score,
    }  # fmt: skip
    check_arguments(_OP, "torch.nn.functional.binary_cross_entropy_with_logits", tuple(SCORES),
                    input, target, pos_weight=pos_weight, **options)  # fmt: skip
    if pos_weight is not None:
        pos_weight = _one_a_label(pos_weight, input)
    if REFERENCE:
        return reference.scored_binary_cross_entropy(
            input, target, pos_weight=pos_weight, **options
        )
    wide = compute_dtype(input)
    if not (target.is_floating_point() or target.is_complex()):
        target = target.to(input.dtype)  # 0 and 1 are exact in every one
    elif target.dtype not in (input.dtype, wide) and not target.is_complex():
        target = target.to(wide)
    if pos_weight is not None:
        pos_weight = pos_weight.to(wide).reshape(-1).contiguous()
    loss, scores = scored(_OP, input, target, pos_weight=(pos_weight,), **options)
    return ScoredLoss(loss, *scores.unbind())


def _one_a_label(pos_weight: Tensor, input: Tensor) -> Tensor:
    """As input.shape[1:]."""
    shape, given = input.shape[1:], pos_weight
    while given.dim() > len(shape) and given.shape[0] == 1:
        given = given[0]
    fits = given.dim() <= len(shape) and all(
        size in (1, wanted)
        for size, wanted in zip(reversed(given.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise RuntimeError(
            f"cpfast::{_OP}: pos_weight: expected what broadcasts to shape {list(shape)}, got "
            f"{list(pos_weight.shape)}"
        )
    return given.expand(shape)
