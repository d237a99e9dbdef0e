"""Training data of which a part is held out, to tune on."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from cpfast.train.data import Data

FOLDS = 5


def fold(data: Data, number: int) -> Data:
    """Trained on without a fifth of the training samples, which are tested on in place of the test
    samples.

    Args:
        number: which of the fifths, below `FOLDS`: each sample is in one of them.
    """
    order = torch.from_numpy(np.random.default_rng(2).permutation(data.train_size))
    is_test = torch.arange(len(order)) % FOLDS == number
    return held_out(data, order[~is_test], order[is_test])


def held_out(data: Data, train: Tensor, test: Tensor) -> Data:
    """Trained on some of the training samples, and tested on others of them.

    Args:
        train: which, in this order, int64 [n].
        test: likewise.
    """
    changes = {}
    for field in dataclasses.fields(data):
        if field.name.startswith("train_"):
            values = getattr(data, field.name)
            changes[field.name] = values[train]
            changes["test_" + field.name.removeprefix("train_")] = values[test]
    return dataclasses.replace(data, **changes)
