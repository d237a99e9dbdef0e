"""Typed functions over ``torch.ops.cpfast.*``, with their fake kernels and autograd.

One call serves all layers or all samples, never copies to the host, and is deterministic. Errors
of shape, dtype, device and value are raised as RuntimeError at the C++ boundary, and name the
argument and its value.
"""

from cpfast.ops._augment_batch import augment_batch
from cpfast.ops._layer_plan import LayerPlan
from cpfast.ops._layer_statistics import layer_rotation, layer_statistics
from cpfast.ops._record_scores import record_scores
from cpfast.ops._scored_cross_entropy import scored_cross_entropy
from cpfast.ops._select_samples import select_samples
from cpfast.ops._shuffled_slice import shuffled_slice
from cpfast.results import LayerStatistics, ScoredLoss, Selection

__all__ = [
    "LayerPlan",
    "LayerStatistics",
    "ScoredLoss",
    "Selection",
    "augment_batch",
    "layer_rotation",
    "layer_statistics",
    "record_scores",
    "scored_cross_entropy",
    "select_samples",
    "shuffled_slice",
]
