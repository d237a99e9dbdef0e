"""Data pruning: policies, and the pruner that plans epochs by them."""

from cpfast.pruning.plan import LazyPlan
from cpfast.pruning.policy import (
    COLUMNS,
    BatchFilter,
    Chosen,
    Draw,
    Policy,
    Samples,
    TokenFilter,
    policies,
)
from cpfast.pruning.pruner import DataPruner

__all__ = [
    "COLUMNS",
    "BatchFilter",
    "Chosen",
    "DataPruner",
    "Draw",
    "LazyPlan",
    "Policy",
    "Samples",
    "TokenFilter",
    "policies",
]
