"""The running statistics of normalisation, measured anew where a network has been changed.

They average over a hundred steps or more. For so long after other weights, or other data, a test
would see those of another network, and take that for damage. Training itself never uses them.
"""

from __future__ import annotations

import torch
from torch import nn

from cpfast.recipes import StepShape
from cpfast.studies.store import Entry
from cpfast.train.data import Data
from cpfast.train.loop import Training, evaluate
from cpfast.train.runfolder import RunFolder

BATCH = 512
PLAIN = StepShape(augment=0.0)


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
        inputs, _ = training.batches.train(index, torch.zeros_like(index), PLAIN)
        with training.autocast():
            training.model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def tested(entry: Entry, folder: RunFolder, data: Data) -> Entry:
    """The entry of a run that has ended, with the test's results by statistics measured anew.

    Args:
        data: what it was trained on last, and is tested on.
    """
    state = folder.checkpoint()
    if entry["diverged"] is not None or state is None:
        return entry
    config = folder.config()
    training = Training(config, data.to(torch.device(config.device)))
    training.model.load_state_dict(dict(state["model"]))
    measure(training)
    loss, accuracy = evaluate(training)
    return {**entry, "test_loss": loss, "test_accuracy": accuracy}
