"""What a trained model says of each sample of a data set: its losses and its scores."""

from __future__ import annotations

import torch
from torch import Tensor

import cpfast
from cpfast.train.data import Data
from cpfast.train.errors import UserError
from cpfast.train.references import TOKEN_LOSS
from cpfast.train.trained import BATCH, TrainedModel

__all__ = ["COLUMNS", "score"]

COLUMNS = ("loss", "el2n", "margin", "correct")


@torch.inference_mode()
def score(model: TrainedModel, data: Data, split: str) -> dict[str, Tensor]:
    """What the loss says of each sample, not augmented, in float32, on the CPU.

    Args:
        split: "train" or "test".

    Returns:
        `COLUMNS`, [N] float32 each, of a sequence the means over its tokens; of text `TOKEN_LOSS`,
        [N, T] float32.

    Raises:
        UserError: the data is not what the model takes, or there is none.
    """
    device = next(model.parameters()).device
    samples, targets = model.input.split(data, split)
    if not len(samples):
        raise UserError(f"--data {data.name}: no samples")
    parts: dict[str, list[Tensor]] = {}
    for some, wanted in zip(samples.split(BATCH), targets.split(BATCH), strict=True):
        logits = model(some.to(device)).float()
        scored = cpfast.ops.scored_cross_entropy(logits, wanted.to(device))
        for name in COLUMNS:
            values = getattr(scored, name)
            if values.dim() == 2:
                if name == "loss":
                    parts.setdefault(TOKEN_LOSS, []).append(values.cpu())
                values = values.mean(1)
            parts.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}
