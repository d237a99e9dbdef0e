"""What can be had by guessing: the yardstick below which nothing was learned."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.train.data import Data, TextData

__all__ = ["is_near", "of"]

NEAR = 0.1  # of the way from guessing to all


def of(data: Data) -> float:
    """Share of the test samples that are of their commonest class; of text, of its characters."""
    if isinstance(data, TextData):
        return _commonest(data.test_tokens[:, 1:].flatten())
    return _commonest(data.test_labels)


def _commonest(labels: Tensor) -> float:
    return float(torch.bincount(labels.long()).max()) / len(labels)


def is_near(accuracy: float, chance: float) -> bool:
    """Whether less than a tenth of the way from guessing the commonest class to 1 is made."""
    return accuracy - chance < NEAR * (1 - chance)
