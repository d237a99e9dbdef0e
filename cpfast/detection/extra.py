"""What is measured on batches of its own, after an epoch's steps: gradients, and their moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpfast.pruning import Draw

__all__ = ["Batches", "ExtraGradients"]

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""Logits [..., C] of the training data's batch of that number, from 0, and its targets [...]: the
same samples at each call. It runs the model, which is in evaluation mode meanwhile."""

_STREAM = 2  # of the draws of labels; those within batches have another


class ExtraGradients:
    """Gradients of batches, of all parameters, with the model in evaluation mode.

    Attributes:
        samples: how many went forward and backward for it.
    """

    def __init__(self, model: nn.Module, batches: Batches, seed: int) -> None:
        self._model = model
        self._batches = batches
        self._draw = Draw(seed, 0, _STREAM)
        self.samples = 0

    @torch.enable_grad()
    def of_loss(self, number: int) -> Tensor:
        """Of a batch's mean cross-entropy: [P] float32, zero where a parameter has none."""
        logits, target = self._forward(number)
        return _flat(self._gradients(F.cross_entropy(logits, target)))

    @torch.enable_grad()
    def fisher(self, number: int) -> Tensor:
        """n |g|^2 for a batch of n predictions, [] float64, where g is the gradient of their mean
        cross-entropy with labels that the model itself draws: the trace of the Fisher information
        in expectation, since scores of such labels have mean zero and are independent.

        The same numbers draw the labels of a batch at each call, so that differences between two
        epochs are those of the model.
        """
        logits, target = self._forward(number)
        positions = torch.arange(len(target), device=logits.device) + number * len(target)
        labels = sampled(logits.detach(), self._draw.uniform(positions))
        gradient = _flat(self._gradients(F.cross_entropy(logits, labels)))
        return len(labels) * gradient.double().square().sum()

    def _forward(self, number: int) -> tuple[Tensor, Tensor]:
        with evaluating(self._model):
            logits, target = self._batches(number)
            self.samples += len(target)
            return logits.float().flatten(0, -2), target.flatten()

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        parameters = list(self._model.parameters())
        asked = [p for p in parameters if p.requires_grad]
        found = iter(torch.autograd.grad(loss, asked, allow_unused=True))
        gradients = [next(found) if p.requires_grad else None for p in parameters]
        return [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(gradients, parameters, strict=True)
        ]


def sampled(logits: Tensor, uniform: Tensor) -> Tensor:
    """A class for each row of logits [n, C], from numbers [n] in (0, 1): int64."""
    cumulated = logits.double().softmax(-1).cumsum(-1)
    below = cumulated < uniform.unsqueeze(-1) * cumulated[:, -1:]
    return below.sum(-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[] float64; 0 where one of them is zero."""
    dot, aa, bb = ((x * y).sum(dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b)))
    return dot / (aa.sqrt() * bb.sqrt()).clamp_min(1e-300)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards each module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().float() for tensor in tensors])
