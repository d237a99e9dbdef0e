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
from torch import Tensor, nn

from cpfast.registry import Registry
from cpfast.train.errors import UserError, first_line
from cpfast.train.models import elsewhere

__all__ = [
    "Model", "build", "check", "check_name", "count_parameters", "kind_of", "models",
    "set_bn_momentum", "try_out",
]  # fmt: skip


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


def kind_of(name: str) -> str | None:
    """What kind of data a model reads; None of people's own, which read what there is."""
    if name in models:
        return models.make(name).reads
    return elsewhere.reads(name)


def check_name(name: str) -> None:
    """
    Raises:
        UserError: no model can be of that name.
    """
    if name not in models and not elsewhere.is_elsewhere(name):
        raise UserError(
            f"--model must be one of {', '.join(models)}, timm:NAME or module:function; got "
            f"{name!r}"
        )


def check(name: str, reads: str, data: str) -> None:
    """Whether a model reads a kind of data.

    Raises:
        UserError: it does not, or there is no such model.
    """
    check_name(name)
    if kind_of(name) not in (reads, None):
        fitting = [other for other, entry in models.items() if entry.make().reads == reads]
        raise UserError(
            f"--model {name} does not fit --data {data}; choose from {', '.join(fitting)}"
        )


def build(name: str, shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """A freshly initialised model on the CPU; the same seed gives the same weights to the bit.

    The global random state is left as it was.

    Args:
        name: one of `models`, or of those elsewhere.
        shape: of a sample: (height, width, channels) of an image, (length,) of a text, (features,)
            of a row, (channels, length) of a series.
        outputs: number of logits; of text also the number of different tokens.

    Raises:
        UserError: there is no such model, or vit-tiny cannot cut images of this size.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the generators of all GPUs, which are not restored.
        torch.default_generator.manual_seed(seed)
        if name in models:
            return models.make(name).build(shape, outputs)
        return elsewhere.build(name, shape, outputs)


def set_bn_momentum(model: nn.Module, momentum: float | None) -> None:
    """Of every BatchNorm layer's running statistics, torch's momentum (1 - Keras'); None: as it
    is."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and momentum is not None:
            module.momentum = momentum


@torch.no_grad()
def try_out(name: str, model: nn.Module, inputs: Tensor, targets: Tensor, outputs: int) -> None:
    """Whether a model from elsewhere takes a batch, and gives logits for it.

    Raises:
        UserError: it does not.
    """
    if name in models:
        return
    is_training = model.training
    try:
        with torch.random.fork_rng(devices=[]):
            logits = model.eval()(inputs)
    # whatever the network's own code raises
    except Exception as error:
        raise UserError(
            f"--model {name}: it does not take inputs of {list(inputs.shape)} ({first_line(error)})"
        ) from error
    finally:
        model.train(is_training)
    expected = [*targets.shape, outputs]
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise UserError(
            f"--model {name}: for inputs of {list(inputs.shape)} it gives {found}; expected logits "
            f"{expected}"
        )


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
