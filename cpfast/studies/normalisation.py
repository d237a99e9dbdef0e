"""The running statistics of normalisation, measured anew where a network has been changed.

They average over the last hundred steps or so. After other weights, or other data, a test would see
those of another network for as long, and take that for damage. Training itself never uses them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.loop import Training

BATCH = 512


@torch.no_grad()
def measure(training: Training) -> None:
    """Plain means over the training data, which are not augmented for it."""
    norms = [m for m in training.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's way to ask for the plain mean
    training.model.train()
    for index in torch.arange(training.data.train_size, device=training.device).split(BATCH):
        inputs, _ = training.batches.train(index, torch.zeros_like(index), 0.0)
        with training.autocast():
            training.model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def measured(state: dict[str, Any], config: Config, data: ImageData | TextData) -> dict[str, Any]:
    """The state of a run, with the statistics of its weights on these data."""
    training = Training(config, data.to(torch.device(config.device)))
    training.model.load_state_dict(dict(state["model"]))
    measure(training)
    model = {name: value.detach().cpu() for name, value in training.model.state_dict().items()}
    return {**state, "model": model}
