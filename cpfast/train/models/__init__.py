"""The networks of the entrypoint, one file a family.

Images come as float [N, C, H, W], mean-subtracted, tables as [N, F] and time series as [N, C, T],
normalised, and give logits [N, outputs]; text comes as tokens int64 [N, T] and gives logits
[N, T, outputs], those of position t for token t + 1.

None draws random numbers once it is built: there is no dropout and no stochastic depth, so that a
resumed run, a replayed CUDA graph and a run on another device see the same network. None asks the
host for a value of the device. Backward passes on CUDA add in a fixed order, as cuDNN is told to
(`cudnn.deterministic`), except that of attention: see `cpfast.train.models.attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cpfast.registry import Registry
from cpfast.train.errors import UserError

__all__ = ["Model", "build", "check", "count_parameters", "models", "set_bn_momentum"]


@dataclass(frozen=True)
class Model:
    """How a network is made.

    Attributes:
        build: from the shape of a sample and the number of logits.
        reads: what kind of data, of `cpfast.train.data.KINDS`.
        optimizer: by which such a network is commonly trained.
    """

    build: Callable[[tuple[int, ...], int], nn.Module]
    reads: str = "images"
    optimizer: str = "sgd"


models: Registry[Model] = Registry("model", "cpfast.train.models", "cpfast.models")


def check(name: str, reads: str, data: str) -> None:
    """Whether a model reads a kind of data.

    Raises:
        UserError: it does not, or there is no such model.
    """
    if name not in models:
        raise UserError(f"--model must be one of {', '.join(models)}; got {name!r}")
    if models.make(name).reads != reads:
        fitting = [other for other, entry in models.items() if entry.make().reads == reads]
        raise UserError(
            f"--model {name} does not fit --data {data}; choose from {', '.join(fitting)}"
        )


def build(name: str, shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """A freshly initialised model on the CPU; the same seed gives the same weights to the bit.

    The global random state is left as it was.

    Args:
        name: one of `models`.
        shape: of a sample: (height, width, channels) of an image, (length,) of a text, (features,)
            of a row, (channels, length) of a series.
        outputs: number of logits; of text also the number of different tokens.

    Raises:
        UserError: there is no such model, or vit-tiny cannot cut images of this size.
    """
    if name not in models:
        raise UserError(f"--model must be one of {', '.join(models)}; got {name!r}")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the generators of all GPUs, which are not restored.
        torch.default_generator.manual_seed(seed)
        return models.make(name).build(shape, outputs)


def set_bn_momentum(model: nn.Module, momentum: float | None) -> None:
    """Of every BatchNorm layer's running statistics, torch's momentum (1 - Keras'); None: as it
    is."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and momentum is not None:
            module.momentum = momentum


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
