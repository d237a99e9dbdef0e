"""What may stand in for the first epochs: weights from as many epochs of another task.

Those of Frankle, Schwab & Morcos (arXiv 2002.10365) that see the images and not, or not all of,
what is to be learned: blurred images, and self-supervision by quarter turns (Gidaris, Singh &
Komodakis, arXiv 1803.07728), in which the network is to tell by how much an image was turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpfast.studies.deficits import blur
from cpfast.train import models
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError

INITIAL = "initial"
"""The weights that training began from: no first epochs at all."""
_TURNS = ("0", "90", "180", "270")


class Pretraining(NamedTuple):
    """What is trained on in place of the data.

    Attributes:
        has_own_classes: so that the last layer is no use afterwards, and begins anew.
    """

    shown: Callable[[ImageData, int], ImageData]
    has_own_classes: bool

    def configured(self, config: Config) -> Config:
        """Without an evaluation, which nobody reads; turned images are not mirrored as well, for
        a quarter to the left would become one to the right."""
        return config.replace(
            eval_every=config.epochs, flip=config.flip and not self.has_own_classes
        )


def check_square(data: ImageData) -> None:
    """
    Raises:
        UserError: the images are not.
    """
    height, width, _ = data.shape
    if height != width:
        raise UserError(f"--perturbations rotation: images must be square, got {height}x{width}")


def turned(data: ImageData, seed: int) -> ImageData:
    """Each image by a quarter, a half, three quarters or not at all, drawn for it once; that is its
    class.

    Raises:
        UserError: as `check_square`.
    """
    check_square(data)
    generator = np.random.Generator(np.random.PCG64(seed))
    changes: dict[str, Any] = {}
    for split in ("train", "test"):
        images = getattr(data, f"{split}_images")
        turns = torch.from_numpy(generator.integers(len(_TURNS), size=len(images)))
        made = images.clone()
        for number in range(1, len(_TURNS)):
            chosen = (turns == number).to(images.device)
            made[chosen] = torch.rot90(images[chosen], number, (1, 2))
        changes |= {f"{split}_images": made, f"{split}_labels": turns.to(images.device)}
    return dataclasses.replace(data, classes=_TURNS, **changes)


def _both(data: ImageData, seed: int) -> ImageData:
    return turned(blur(data, seed), seed)


PRETRAININGS = {
    "blur": Pretraining(blur, False),
    "rotation": Pretraining(turned, True),
    "blur+rotation": Pretraining(_both, True),
}


def head_of(config: Config, data: ImageData) -> set[str]:
    """The names of what depends on the number of classes."""
    few, more = (
        models.build(config.model, data.shape, data.outputs + number, 0).state_dict()
        for number in (0, 1)
    )
    return {name for name in few if few[name].shape != more[name].shape}


def begun_with(state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of a run with this model, of all of whose tensors there is one; the optimizer
    begins anew, for its momentum is of other weights."""
    optimizer = dict(state["optimizer"])
    optimizer["state"] = {
        key: {
            name: torch.zeros_like(value) if isinstance(value, Tensor) else value
            for name, value in one.items()
        }
        for key, one in optimizer["state"].items()
    }
    model = {name: weights[name].to(value.device) for name, value in state["model"].items()}
    return {**state, "model": model, "optimizer": optimizer}
