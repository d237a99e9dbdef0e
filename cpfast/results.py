"""What the ops return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LayerStatistics", "LayerSums", "ScoredLoss", "ScoredRegression", "Selection"]


class LayerSums(NamedTuple):
    """The rows of :func:`cpfast.ops.layer_sums`, each [L] float64, with d = w - ratio * w0."""

    difference_squared: Tensor
    """Sum of d^2."""
    difference_times_ref: Tensor
    """Sum of d * w0."""
    squared: Tensor
    """Sum of w^2."""
    ref_squared: Tensor
    """Sum of w0^2."""
    magnitude: Tensor
    """Sum of ``|w|``."""
    sign_flips: Tensor
    """Number of the elements whose sign is strictly opposite to the reference's."""


class LayerStatistics(NamedTuple):
    """Per-layer statistics of weights against their reference, each [L] float32."""

    cosine_distance: Tensor
    """1 - cos(w, w0), in [0, 2]; 0 where both are zero, 1 where one of them is, NaN where one holds
    NaN or Inf."""
    l2_distance: Tensor
    """``|w - w0|``."""
    norm: Tensor
    """``|w|``."""
    sign_flips: Tensor
    """Fraction of the elements whose sign is strictly opposite to the reference's."""
    mean_abs: Tensor
    """Mean of ``|w|`` over the elements."""


class ScoredLoss(NamedTuple):
    """Per-sample losses and scores, each [N] float32 (loss: float64 for float64 logits).

    Of cross-entropy; of binary cross-entropy :func:`cpfast.ops.scored_binary_cross_entropy` says
    what each is over a sample's labels.
    """

    loss: Tensor
    """Cross-entropy, unreduced, times the sample's weight; differentiable in the logits."""
    el2n: Tensor
    """``|softmax(x) - onehot(y)|_2``, the EL2N score of arXiv 2107.07075."""
    margin: Tensor
    """x_y - max over j != y of x_j, whose mean over epochs is the AUM of arXiv 2001.10528."""
    correct: Tensor
    """1 where the target is the first of the largest logits, else 0."""


class ScoredRegression(NamedTuple):
    """Per-sample losses and scores, each [N] float32 (loss: float64 for a float64 input)."""

    loss: Tensor
    """Mean squared error, unreduced, times the sample's weight; differentiable in the input."""
    el2n: Tensor
    """``|x - t|_2`` over the sample's elements."""


class Selection(NamedTuple):
    """The samples of one epoch, all on the device of the scores."""

    indices: Tensor
    """[N] int64 or int32: the selected samples, then -1 from position ``count`` on."""
    weights: Tensor
    """[N] float32, beside ``indices``: what each sample's loss is multiplied by, then 0."""
    count: Tensor  # type: ignore[assignment]  # it hides tuple.count
    """[] int64: how many samples are selected."""
