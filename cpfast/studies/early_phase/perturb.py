"""What may be taken from the weights of a network that has begun to learn.

Those of Frankle, Schwab & Morcos (arXiv 2002.10365).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Perturbation = Callable[[Tensor, torch.Generator], Tensor]


def magnitudes(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Signs stay where they are; magnitudes are shuffled within the layer."""
    return weight.sign() * layer(weight.abs(), generator)


def layer(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffled within the layer."""
    order = torch.randperm(weight.numel(), generator=generator)
    return weight.flatten()[order].view(weight.shape)


def filter_(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffled within each filter, or row: what makes one output."""
    rows = weight.flatten(1)
    order = torch.rand(rows.shape, generator=generator).argsort(1)
    return rows.gather(1, order).view(weight.shape)


def noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Plus Gaussian noise of the layer's own standard deviation."""
    return weight + weight.std() * torch.randn(weight.shape, generator=generator)


PERTURBATIONS: dict[str, Perturbation] = {
    "magnitudes": magnitudes, "layer": layer, "filter": filter_, "noise": noise
}  # fmt: skip


def perturbed(
    state: dict[str, Any], name: str, weights: Sequence[str], seed: int
) -> dict[str, Any]:
    """The state of a run with these weights perturbed; the optimizer keeps its momentum."""
    generator = torch.Generator().manual_seed(seed)
    changed = {w: PERTURBATIONS[name](state["model"][w], generator) for w in weights}
    return {**state, "model": {**state["model"], **changed}}
