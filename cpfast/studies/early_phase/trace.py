"""What a network is like before each of its first steps.

A run's beginning is repeated, to the bit, when its end is known, and looked at before each step:
the gradient is that of the weights that are measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from cpfast.ops import LayerPlan
from cpfast.results import LayerStatistics
from cpfast.train import loop
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.loop import EVALUATION_BATCH, Training

# Of all weights of layers together; cosine distances are means over the layers.
NAMES = (
    "accuracy", "loss", "magnitude", "sign_changes", "gradient_norm",
    "l2_from_start", "l2_to_end", "cosine_from_start", "cosine_to_end",
)  # fmt: skip


def trace(
    config: Config, data: ImageData, end: Mapping[str, Tensor], iterations: int
) -> dict[str, list[float]]:
    """A value before each step, of each of `NAMES`.

    Args:
        config: of the run.
        end: the model's state after the last epoch.
    """
    # The hook is called where steps are calls, and not in the replay of a graph.
    config = config.replace(step="eager", eval_every=config.epochs)
    training = Training(config, data.to(torch.device(config.device)))
    weights = training.rotation.weights()
    starts = [weight.detach().clone() for weight in weights]
    ends = [end[name].to(training.device) for name in training.rotation.names]
    plans = [LayerPlan(weights, refs) for refs in (starts, ends)]
    sizes = torch.tensor([w.numel() for w in weights], dtype=torch.float64, device=training.device)
    rows: list[Tensor] = []

    @torch.no_grad()
    def record(*_: object) -> None:
        if len(rows) < iterations:
            start, to_end = (plan.layer_statistics() for plan in plans)
            values = [*_test(training), *_of_layers(start, to_end, sizes, weights)]
            rows.append(torch.stack([value.double() for value in values]))

    handle = training.optimizer.register_step_pre_hook(record)
    for _ in range(math.ceil(iterations * config.batch_size / data.train_size) + 1):
        if len(rows) < iterations and training.epoch < config.epochs:
            loop.train_epoch(training)
    handle.remove()
    columns = torch.stack(rows).T.tolist()
    return {
        name: [float(f"{value:.6g}") for value in column]
        for name, column in zip(NAMES, columns, strict=True)
    }


def _of_layers(
    start: LayerStatistics, end: LayerStatistics, sizes: Tensor, weights: Sequence[Tensor]
) -> list[Tensor]:
    """From `NAMES[2]` on."""
    share = sizes / sizes.sum()
    gradients = [weight.grad.float().norm() for weight in weights if weight.grad is not None]
    return [
        (share * start.mean_abs).sum(),
        (share * start.sign_flips).sum(),
        torch.stack(gradients).norm(),
        start.l2_distance.norm(),
        end.l2_distance.norm(),
        start.cosine_distance.mean(),
        end.cosine_distance.mean(),
    ]


def _test(training: Training) -> tuple[Tensor, Tensor]:
    """Accuracy and loss on the test data, by the statistics of each batch.

    BatchNorm's running ones lag behind by as many steps as are looked at; they are left alone.
    """
    model, total = training.model, training.data.test_size
    correct, loss = (torch.zeros((), device=training.device) for _ in range(2))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for index in torch.arange(total, device=training.device).split(EVALUATION_BATCH):
        images, labels = training.batches.test(index)
        with training.autocast():
            logits = functional_call(model, buffers, (images,)).float()
        correct += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    return correct / total, loss / total
