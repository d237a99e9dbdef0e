"""How unevenly the classes of the training data are filled, and weights that make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.train.data import Data, TextData

__all__ = ["CLASS_WEIGHTS", "describe", "weights"]

CLASS_WEIGHTS = ("none", "balanced")
UNEVEN = 3  # times the smallest class


def weights(data: Data) -> Tensor | None:
    """n / (C n_c) of each class, float32 [C], whose mean over the samples is 1; None of text."""
    if isinstance(data, TextData):
        return None
    counts = _counts(data)
    present = int((counts > 0).sum())
    return (len(data.train_labels) / (present * counts.clamp_min(1))).float()


def describe(data: Data) -> str:
    """For a run's header; empty where the classes are filled about evenly."""
    if isinstance(data, TextData):
        return ""
    counts = _counts(data)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= UNEVEN * counts[least]:
        return ""
    return (
        f"classes are uneven: {counts[most]:,} training samples of {data.classes[most]}, "
        f"{counts[least]:,} of {data.classes[least]}"
    )


def _counts(data: Data) -> Tensor:
    assert not isinstance(data, TextData)
    return torch.bincount(data.train_labels, minlength=data.outputs)
