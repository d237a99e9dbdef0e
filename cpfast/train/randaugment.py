"""RandAugment (arXiv 1909.13719) of a batch, by torchvision's operations and draws of cpfast's own.

`torchvision.transforms.v2.RandAugment` takes one draw for a whole batch, from torch's generator.
Here each image has a draw of its own, a function of the seed and of a number that it comes with, so
that a resumed run equals an undisturbed one and nobody's generator is touched; and the images that
drew the same operation go through it together. Operations and magnitudes are torchvision's, which
has those of the paper's table.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpfast.pruning import Draw
from cpfast.train.errors import UserError, first_line

__all__ = ["MOST", "OPERATIONS", "RandAugment"]

MOST = 30  # of magnitudes
_STREAM = 4  # of the draws; those within batches, of mixing and of lengths have others


def _sheared(F: Any, images: Tensor, x: float, y: float) -> Tensor:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(images, 0.0, [0, 0], 1.0, shear, center=[0, 0])


def _shifted(F: Any, images: Tensor, x: float, y: float) -> Tensor:
    height, width = images.shape[-2:]
    shift = [int(150 / 331 * x * width), int(150 / 331 * y * height)]
    return F.affine(images, 0.0, shift, 1.0, [0.0, 0.0])


# From torchvision's functions, the images [B, C, H, W] and the level, the magnitude over the
# largest, with a random sign where it has two sides; and whether it has.
_Operation = Callable[[Any, Tensor, float], Tensor]
OPERATIONS: dict[str, tuple[_Operation, bool]] = {
    "Identity": (lambda F, images, level: images, False),
    "ShearX": (lambda F, images, level: _sheared(F, images, 0.3 * level, 0.0), True),
    "ShearY": (lambda F, images, level: _sheared(F, images, 0.0, 0.3 * level), True),
    "TranslateX": (lambda F, images, level: _shifted(F, images, level, 0.0), True),
    "TranslateY": (lambda F, images, level: _shifted(F, images, 0.0, level), True),
    "Rotate": (lambda F, images, level: F.rotate(images, 30.0 * level), True),
    "Brightness": (lambda F, images, level: F.adjust_brightness(images, 1 + 0.9 * level), True),
    "Color": (lambda F, images, level: F.adjust_saturation(images, 1 + 0.9 * level), True),
    "Contrast": (lambda F, images, level: F.adjust_contrast(images, 1 + 0.9 * level), True),
    "Sharpness": (lambda F, images, level: F.adjust_sharpness(images, 1 + 0.9 * level), True),
    "Posterize": (lambda F, images, level: F.posterize(images, round(8 - 4 * level)), False),
    "Solarize": (lambda F, images, level: F.solarize(images, 255 * (1 - level)), False),
    "AutoContrast": (lambda F, images, level: F.autocontrast(images), False),
    "Equalize": (lambda F, images, level: F.equalize(images), False),
}


class RandAugment:
    """Some operations for each image, one after another, all of one magnitude.

    Args:
        layers: N, how many; an operation may come twice.
        magnitude: M, of `MOST`.
        seed: of all draws.

    Raises:
        UserError: torchvision cannot be imported.
    """

    def __init__(self, layers: int, magnitude: int, seed: int) -> None:
        try:
            self._functions = importlib.import_module("torchvision.transforms.v2.functional")
        # RuntimeError: of a torchvision that is built for another torch
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"--augment randaugment needs torchvision, which cannot be imported "
                f"({first_line(error)}): pip install torchvision, of the release that goes with "
                f"torch {torch.__version__}"
            ) from error
        self._layers, self._magnitude, self._seed = layers, magnitude, seed

    @torch.no_grad()
    def __call__(self, images: Tensor, number: Tensor, strength: float = 1.0) -> Tensor:
        """
        Args:
            images: [B, C, H, W] uint8, of 1 or 3 channels.
            number: [B] int64, what each image's draws follow from.
            strength: what the magnitude is multiplied by.

        Returns:
            As the images.
        """
        level = min(1.0, self._magnitude * strength / MOST)
        sides = [(operation, sign) for operation in OPERATIONS.values() for sign in (-1, 1)]
        for layer in range(self._layers):
            drawn = Draw(self._seed, layer, _STREAM).uniform(number)
            chosen = (drawn * len(sides)).long()
            images = images.clone()
            for side in chosen.unique().tolist():
                (operation, has_sides), sign = sides[side]
                among = (chosen == side).nonzero()[:, 0]
                signed = sign * level if has_sides else level
                images[among] = operation(self._functions, images[among], signed)
        return images
