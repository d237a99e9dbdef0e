"""The mean squared error, its gradient, and the scores of its samples, in one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpfast import reference
from cpfast.ops._common import REFERENCE
from cpfast.ops._elementwise_loss import check_arguments, compute_dtype, scored
from cpfast.results import ScoredRegression

__all__ = ["scored_mse"]

_OP = "scored_mse"


def scored_mse(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "none",
    gradient: str = "backward",
    table: Tensor | None = None,
    index: Tensor | None = None,
    score: str = "loss",
) -> ScoredRegression:
    """The mean squared error and the scores that data pruning needs, from one pass.

    As ``torch.nn.functional.mse_loss``, except that a sample's loss is the mean over its elements,
    whose mean over the samples is torch's, and that ``weight`` is per sample.

    Args:
        input: [N, ...], of L elements a sample, [N] of one; float32, float64, float16 or bfloat16.
            Samples may be far apart; where elements are not side by side they are copied.
        target: as input, of any of these dtypes. Of input's dtype and float32 it is read as it is;
            others are converted before, float64 to float32 (not for a float64 input), and what is
            converted is kept for the backward pass.
        weight: optional, [N] or [N, 1]; multiplies a sample's loss. With as many samples as
            elements only the last one, for torch's may be one per element.
        reduction: "none": [N]; "mean", the weighted losses' sum over N; or "sum", of the N means.
        gradient: when it is computed. "backward": then, from input and target, which are kept.
            "forward": with the loss; the backward pass only multiplies it by what comes from above,
            which is skipped where that is 1. Then a second backward pass, or one with create_graph,
            is an error (not under torch.compile), and a float16 input is refused, for a loss scale
            comes too late to save its small gradients.
        table: optional [M] float32, written in place: ``table[index]`` becomes the samples' score.
            Of equal indices the last one's.
        index: [N] int64 or int32 in [0, M), which samples these are; with ``table``.
        score: what is written there: "loss" (without its weight) or "el2n".

    Returns:
        :class:`ScoredRegression`, each [N] float32 (loss float64 for a float64 input): ``loss``
        (reduced to [] where asked; differentiable once in ``input``); ``el2n``, ``|x - t|_2`` over
        the elements. Both are of squares in the loss's dtype, as torch's.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values; for an index out of range on the
            CPU. On CUDA, where an error would cost a synchronisation, such an index stops the
            device, as torch's own indexing does. Within torch.func's transforms.
        TypeError: for an argument of another type.

    Sources: EL2N, Paul et al. (arXiv 2107.07075), whose error is that of probabilities.
    """
    options: dict[str, Any] = {
        "weight": weight, "reduction": reduction, "gradient": gradient, "table": table,
        "index": index, "score": score,
    }  # fmt: skip
    check_arguments(_OP, "torch.nn.functional.mse_loss", ("loss", "el2n"), input, target, **options)
    if REFERENCE:
        return reference.scored_mse(input, target, **options)
    wide = compute_dtype(input)
    if target.is_floating_point() and target.dtype not in (input.dtype, wide):
        target = target.to(wide)
    loss, scores = scored(_OP, input, target, **options)
    return ScoredRegression(loss, scores[0])
