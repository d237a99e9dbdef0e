"""Images, from which the mean over the training images is subtracted, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpfast.forms import shown
from cpfast.train.data import ImageData, decoded
from cpfast.train.data.listing import is_image
from cpfast.train.errors import UserError
from cpfast.train.inputs import Input, inputs, matched
from cpfast.train.scores.classes import ClassScores


@inputs.register("images", source="arXiv 2506.15954")
class Images(Input):
    """uint8 [N, H, W, C], or floating point in [0, 1] -> float32 [N, C, H, W], channels last."""

    data = ImageData
    takes_files = True
    mean: Tensor
    scale: Tensor

    def __init__(self, classes: tuple[str, ...], height: int, width: int, channels: int) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.register_buffer("mean", torch.zeros(height, width, channels))
        self.register_buffer("scale", torch.tensor(1 / 255), persistent=False)

    @classmethod
    def of(cls, data: ImageData) -> Images:
        images = cls(data.classes, *data.shape)
        images.mean = data.mean().cpu()
        return images

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.mean.shape
        return height, width, channels

    def options(self) -> dict[str, Any]:
        return dict(zip(("height", "width", "channels"), self.shape, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """
        Raises:
            TypeError, ValueError: the images are of another dtype or shape.
        """
        if images.dim() != 4 or images.shape[1:] != self.mean.shape:
            raise ValueError(f"images: expected [N, {self._size()}], got {list(images.shape)}")
        if images.dtype == torch.uint8:
            # In one rounding, as the op of the training has it.
            x = torch.addcmul(-self.mean, images.float(), self.scale)
        elif images.is_floating_point():
            x = images.float() - self.mean
        else:
            raise TypeError(
                "images: expected uint8, or floating point in [0, 1], got " + shown(images)
            )
        return x.permute(0, 3, 1, 2)

    def split(self, data: Any, name: str) -> tuple[Tensor, Tensor]:
        """Classes are matched by their names, wherever they stand in the list of either.

        Raises:
            UserError: no images, or of another size, or of a class that the model does not know.
        """
        if not isinstance(data, ImageData):
            raise UserError(f"--data {data.name}: no images, which the model was trained on")
        images, labels = {
            "train": (data.train_images, data.train_labels),
            "test": (data.test_images, data.test_labels),
        }[name]
        if data.shape == (*self.shape[:2], 1):  # grey, where the training had colours too
            images = images.expand(-1, -1, -1, self.shape[2])
        if images.shape[1:] != self.shape:
            raise UserError(
                f"--data {data.name}: images of {'x'.join(map(str, data.shape))}; the model takes "
                f"{self._size('x')}"
            )
        return images, matched(self.classes, data, labels)

    def scores(self) -> ClassScores:
        return ClassScores(self.classes)

    def read(self, path: Path) -> Tensor:
        """uint8 [1, H, W, C], whatever the size in the file: prepared as for training."""
        height, width, channels = self.shape
        return torch.tensor(decoded.read_image(path, (height, width), channels))[None]

    def is_file(self, name: str) -> bool:
        return is_image(name)

    def _size(self, by: str = ", ") -> str:
        return by.join(map(str, self.shape))
