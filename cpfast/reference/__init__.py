"""A plain-PyTorch twin of every op: the oracle of the tests, the baseline of the benchmarks.

Each function has the signature of its namesake in :mod:`cpfast.ops` and runs on every device that
torch runs on. With ``CPFAST_BACKEND=reference`` the ops themselves are these functions.
"""

from cpfast.reference._augment_batch import augment_batch, warp
from cpfast.reference._draws import draw_key, mix64, numbers, permute, philox4x32
from cpfast.reference._layer_statistics import (
    layer_rotation,
    layer_statistics,
    layer_sums,
    ratio_of_sums,
    record_layer_rotation,
    rotation_of_sums,
    statistics_of_sums,
)
from cpfast.reference._record_scores import record_scores
from cpfast.reference._scored_binary_cross_entropy import scored_binary_cross_entropy
from cpfast.reference._scored_cross_entropy import scored_cross_entropy
from cpfast.reference._scored_mse import scored_mse
from cpfast.reference._select_samples import is_exact, select_samples
from cpfast.reference._shuffled_slice import shuffled_slice

__all__ = [
    "augment_batch",
    "draw_key",
    "is_exact",
    "layer_rotation",
    "layer_statistics",
    "layer_sums",
    "mix64",
    "numbers",
    "permute",
    "philox4x32",
    "ratio_of_sums",
    "record_layer_rotation",
    "record_scores",
    "rotation_of_sums",
    "scored_binary_cross_entropy",
    "scored_cross_entropy",
    "scored_mse",
    "select_samples",
    "shuffled_slice",
    "statistics_of_sums",
    "warp",
]
