"""What the training on all data begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cpfast.studies import normalisation
from cpfast.train import models
from cpfast.train.data import ImageData, stratified
from cpfast.train.loop import Training

# Of the fresh weights that are mixed in: not those that the first training began with.
OTHER = 2**31


class Begin(NamedTuple):
    """An arm: `shrink` times what the first training ended with, plus `noise` times fresh weights.

    The noise of Ash & Adams (arXiv 1910.08475) has one variance for all layers; that
    of a fresh initialisation is each layer's own, and (0, 1) is then training from scratch.
    """

    arm: str
    shrink: float
    noise: float


def first_part(data: ImageData, share: float, seed: int) -> ImageData:
    """So much of the training data, stratified, drawn by the seed."""
    labels = data.train_labels.cpu().numpy()
    kept = torch.from_numpy(stratified(labels, max(1, int(share * len(labels))), seed))
    kept = kept.to(data.train_labels.device)
    return dataclasses.replace(
        data, train_images=data.train_images[kept], train_labels=data.train_labels[kept]
    )


@torch.no_grad()
def set_weights(training: Training, trained: Mapping[str, Tensor], begin: Begin) -> None:
    """All parameters, normalisation and biases too.

    The statistics of normalisation are measured anew where weights have been changed.

    Args:
        trained: the state of the model that was trained before.
    """
    config, data = training.config, training.data
    other = (config.seed + OTHER) % 2**32
    fresh = models.build(config.model, data.shape, data.outputs, other).state_dict()
    state = dict(trained)
    for name, _ in training.model.named_parameters():
        state[name] = begin.shrink * trained[name] + begin.noise * fresh[name]
    training.model.load_state_dict(state)
    if (begin.shrink, begin.noise) != (1, 0):
        normalisation.measure(training)
