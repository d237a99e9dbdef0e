"""Typed functions over ``torch.ops.cpfast.*``, with their fake kernels and autograd.

One call serves all layers or all samples, never copies to the host, and is deterministic. Errors
of shape, dtype, device and value are raised as RuntimeError at the C++ boundary, and name the
argument and its value.
"""

from cpfast.ops._augment_batch import augment_batch
from cpfast.ops._layer_plan import LayerPlan
from cpfast.ops._layer_statistics import layer_rotation, layer_statistics, layer_sums
from cpfast.ops._layer_sums import ratio_of_sums, rotation_of_sums, statistics_of_sums
from cpfast.ops._record_scores import record_scores
from cpfast.ops._scored_binary_cross_entropy import scored_binary_cross_entropy
from cpfast.ops._scored_cross_entropy import scored_cross_entropy
from cpfast.ops._scored_linear_cross_entropy import scored_linear_cross_entropy
from cpfast.ops._scored_mse import scored_mse
from cpfast.ops._select_samples import select_samples
from cpfast.ops._shuffled_slice import shuffled_slice
from cpfast.results import (
    LayerStatistics,
    LayerSums,
    ScoredLoss,
    ScoredRegression,
    Selection,
)

__all__ = [
    "LayerPlan",
    "LayerStatistics",
    "LayerSums",
    "ScoredLoss",
    "ScoredRegression",
    "Selection",
    "augment_batch",
    "layer_rotation",
    "layer_statistics",
    "layer_sums",
    "ratio_of_sums",
    "record_scores",
    "rotation_of_sums",
    "scored_binary_cross_entropy",
    "scored_cross_entropy",
    "scored_linear_cross_entropy",
    "scored_mse",
    "select_samples",
    "shuffled_slice",
    "statistics_of_sums",
]
