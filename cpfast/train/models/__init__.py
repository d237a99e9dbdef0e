"""The networks of the entrypoint, one file a family.

Images come as float [N, C, H, W], mean-subtracted, and give logits [N, outputs]; text comes as
tokens int64 [N, T] and gives logits [N, T, outputs], those of position t for token t + 1.

None draws random numbers once it is built: there is no dropout and no stochastic depth, so that a
resumed run, a replayed CUDA graph and a run on another device see the same network. None asks the
host for a value of the device. Backward passes on CUDA add in a fixed order, as cuDNN is told to
(`cudnn.deterministic`), except that of attention: see `cpfast.train.models.attention`.
"""

from __future__ import annotations

import torch
from torch import nn

from cpfast.train.config import MODELS
from cpfast.train.errors import UserError
from cpfast.train.models.cifar_resnet import CifarResNet
from cpfast.train.models.cnn import SmallCNN
from cpfast.train.models.efficientnet import EfficientNetB0
from cpfast.train.models.resnet import ResNet
from cpfast.train.models.transformer import Transformer
from cpfast.train.models.vit import ViTTiny
from cpfast.train.models.wide_resnet import WideResNet

__all__ = ["build", "count_parameters"]

# Up to this many pixels a side the first layers of ImageNet's networks keep the resolution.
SMALL = 64


def build(name: str, shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """A freshly initialised model on the CPU; the same seed gives the same weights to the bit.

    The global random state is left as it was.

    Args:
        name: one of `cpfast.train.config.MODELS`.
        shape: of a sample: (height, width, channels) of an image, (length,) of a text.
        outputs: number of logits; of text also the number of different tokens.

    Raises:
        UserError: there is no such model, or vit-tiny cannot cut images of this size.
    """
    if name not in MODELS:
        raise UserError(f"--model must be one of {', '.join(MODELS)}; got {name!r}")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the generators of all GPUs, which are not restored.
        torch.default_generator.manual_seed(seed)
        return _make(name, shape, outputs)


def _make(name: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    if name == "transformer":
        return Transformer(shape[0], outputs)
    height, width, channels = shape
    small = max(height, width) <= SMALL
    if name == "cnn":
        return SmallCNN(channels, outputs)
    if name == "wrn28-10":
        return WideResNet(28, 10, channels, outputs)
    if name == "vit-tiny":
        return ViTTiny(shape, outputs, patch=4 if small else 16)
    if name == "efficientnet-b0":
        return EfficientNetB0(channels, outputs, small)
    depth = int(name.removeprefix("resnet"))
    if depth in (18, 34, 50):
        return ResNet(depth, channels, outputs, small)
    return CifarResNet(depth, channels, outputs)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
