"""What a trained model is worth on a data set."""

from __future__ import annotations

from typing import Any

import torch

from cpfast.train.data import Data
from cpfast.train.errors import UserError
from cpfast.train.scores import Scores
from cpfast.train.trained import BATCH, TrainedModel

SPLITS = {"test": ("test",), "train": ("train",), "all": ("train", "test")}


@torch.inference_mode()
def evaluate(model: TrainedModel, data: Data, split: str = "test") -> tuple[dict[str, Any], Scores]:
    """The result of the scores that go with the data's kind, and these scores.

    In float32, by batches as the training evaluates: a run that was trained in float32 on one
    device gets the numbers of its own evaluation.

    Args:
        split: one of `SPLITS`.

    Raises:
        UserError: the data is not what the model takes, or there is none.
    """
    device = next(model.parameters()).device
    scores = model.input.scores()
    count = 0
    for part in SPLITS[split]:
        samples, targets = model.input.split(data, part)
        count += len(samples)
        for some, wanted in zip(samples.split(BATCH), targets.split(BATCH), strict=True):
            if len(some):
                scores.add(model(some.to(device)), wanted.to(device))
    if count == 0:
        raise UserError(f"--data {data.name}: no samples")
    return scores.result(), scores
