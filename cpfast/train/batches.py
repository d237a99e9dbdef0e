"""What a step reads: a batch gathered by index; images augmented, numbers
normalised, in the precision of the run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import cpfast
from cpfast.detection.extra import Batches
from cpfast.pruning import Draw
from cpfast.recipes import StepShape
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.config import Config
from cpfast.train.data import Data, FloatData, ImageData, TextData
from cpfast.train.errors import UserError
from cpfast.train.randaugment import RandAugment

FULL = StepShape()
_LENGTH_STREAM = 3  # of the draws; those within batches and those of the passes have others
_PROBE_STREAM = 2**20  # of the draws, beyond any number of passes
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def of(config: Config, data: Data) -> AnyBatches:
    """The batches of a data set."""
    if isinstance(data, FloatData):
        return FloatBatches(config, data)
    return ImageBatches(config, data) if isinstance(data, ImageData) else TextBatches(config, data)


def fixed(config: Config, data: Data, batches: AnyBatches, model: nn.Module) -> Batches:
    """What a probe measures extra gradients by: batches of the run's size from one random order of
    the training data, the same throughout, not augmented, and what the model makes of them in
    float32. Where so many are asked for that the data do not suffice, it begins again."""
    device = next(model.parameters()).device
    order = Draw(config.seed, 0, _PROBE_STREAM).order(data.train_size, device)
    positions = torch.arange(config.batch_size, device=device)

    def forward(number: int) -> tuple[Tensor, Tensor]:
        index = order[(positions + number * config.batch_size) % data.train_size]
        inputs, targets = batches.plain(index)
        return model(inputs), targets

    return forward


class ImageBatches:
    """Images [B, C, H, W], channels last, with their labels [B]."""

    def __init__(self, config: Config, data: ImageData) -> None:
        self._config, self._data = config, data
        self._mean = data.mean()
        self._dtype = AUTOCAST[config.precision]
        self._augmentation = kind = AUGMENTATIONS[config.augment]
        self._operations = None
        if kind.layers > 0:
            if data.shape[-1] not in (1, 3):
                raise UserError(
                    f"--augment {config.augment}: for images of 1 or 3 channels, and {config.data} "
                    f"has {data.shape[-1]}"
                )
            self._operations = RandAugment(kind.layers, kind.magnitude, config.seed)

    def train(self, index: Tensor, draw: Tensor, shape: StepShape = FULL) -> tuple[Tensor, Tensor]:
        """Augmented by draws of (seed, sample, draw) alone.

        Args:
            index, draw: [B] int64; `draw` counts the passes over the data from the training's
                beginning.
            shape: how strongly, and at what resolution.
        """
        finish: dict[str, Any] = {
            "mean": self._mean,
            "dtype": self._dtype,
            "size": self.size(shape),
        }
        operations = self._operations if shape.augment > 0 else None
        images = cpfast.ops.augment_batch(
            self._data.train_images,
            index,
            seed=self._config.seed,
            epoch=0,
            repeat=draw,
            flip=self._config.flip and self._augmentation.mirrors and shape.augment > 0,
            shift=min(1.0, self._augmentation.shift * shape.augment),
            rotation=min(180.0, self._augmentation.rotation * shape.augment),
            **(finish if operations is None else {}),
        )
        if operations is not None:
            number = draw * self._data.train_size + index
            images = (255 * images).round_().to(torch.uint8)
            images = operations(images, number, shape.augment)
            images = images.permute(0, 2, 3, 1).contiguous()
            everyone = torch.arange(len(images), device=images.device)
            images = cpfast.ops.augment_batch(images, everyone, seed=0, epoch=0, **finish)
        return images, self._data.train_labels[index]

    def size(self, shape: StepShape) -> tuple[int, int] | None:
        """Height and width that the model sees; None: those of the images."""
        if shape.resolution == 1:
            return None
        height, width, _ = self._data.shape
        return tuple(max(1, round(shape.resolution * side)) for side in (height, width))  # type: ignore[return-value]

    def shapes(self, shape: StepShape = FULL) -> Tensor:
        """Two images as :meth:`train` has them, on the meta device in float32: none is read."""
        height, width = self.size(shape) or self._data.shape[:2]
        return torch.empty(2, self._data.shape[-1], height, width, device="meta")

    def plain(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those of training, not augmented, in float32."""
        images = cpfast.ops.augment_batch(
            self._data.train_images, index, seed=0, epoch=0, mean=self._mean, dtype=torch.float32
        )
        return images, self._data.train_labels[index]

    def test(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        images = cpfast.ops.augment_batch(
            self._data.test_images, index, seed=0, epoch=0, mean=self._mean, dtype=self._dtype
        )
        return images, self._data.test_labels[index]


class FloatBatches:
    """Numbers [B, F] or [B, C, T] with their labels [B]: less the mean of the training data, over
    their standard deviation. Nothing is augmented."""

    def __init__(self, config: Config, data: FloatData) -> None:
        self._data = data
        mean, deviation = data.normalisation()
        self._mean, self._deviation = (
            part.to(data.train_values.device) for part in (mean, deviation)
        )
        self._dtype = AUTOCAST[config.precision]

    def train(self, index: Tensor, draw: Tensor, shape: StepShape = FULL) -> tuple[Tensor, Tensor]:
        values = self._normalised(self._data.train_values[index])
        return values.to(self._dtype), self._data.train_labels[index]

    def shapes(self, shape: StepShape = FULL) -> Tensor:
        """As those of :class:`ImageBatches`."""
        return torch.empty(2, *self._data.shape, device="meta")

    def plain(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """As those of training, in float32."""
        return self._normalised(self._data.train_values[index]), self._data.train_labels[index]

    def test(self, index: Tensor) -> tuple[Tensor, Tensor]:
        values = self._normalised(self._data.test_values[index])
        return values.to(self._dtype), self._data.test_labels[index]

    def _normalised(self, values: Tensor) -> Tensor:
        return (values - self._mean) / self._deviation


class TextBatches:
    """Tokens [B, T] int64, and at each position the one that follows. Nothing is augmented."""

    def __init__(self, config: Config, data: TextData) -> None:
        self._config, self._data = config, data

    def train(self, index: Tensor, draw: Tensor, shape: StepShape = FULL) -> tuple[Tensor, Tensor]:
        """A sequence's tokens, of a share of its length from a place that (seed, sample, draw)
        gives."""
        return self._next_tokens(self._cut(self._data.train_tokens[index], index, draw, shape, 1))

    def beside(self, values: Tensor, index: Tensor, draw: Tensor, shape: StepShape) -> Tensor:
        """Of values that belong to all targets of the sequences ``index``, [B, T], those of the
        targets that :meth:`train` gives."""
        return self._cut(values, index, draw, shape, 0)

    def _cut(
        self, values: Tensor, index: Tensor, draw: Tensor, shape: StepShape, more: int
    ) -> Tensor:
        """
        Args:
            more: how many values there are beyond the sequence's length.
        """
        if shape.length == 1:
            return values
        whole = values.shape[1] - more
        length = _share(shape, whole)
        number = draw * self._data.train_size + index
        random = Draw(self._config.seed, 0, _LENGTH_STREAM).uniform(number)
        begin = (random * (whole - length + 1)).long()
        positions = torch.arange(length + more, device=index.device)
        return values.gather(1, begin[:, None] + positions)

    def shapes(self, shape: StepShape = FULL) -> Tensor:
        """Tokens of two sequences, as those of :class:`ImageBatches`."""
        length = _share(shape, self._data.shape[0])
        return torch.empty(2, length, dtype=torch.int64, device="meta")

    def plain(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.train(index, index)

    def test(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._next_tokens(self._data.test_tokens[index])

    @staticmethod
    def _next_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens.long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _share(shape: StepShape, tokens: int) -> int:
    """How many of a sequence's tokens are read."""
    return max(1, round(shape.length * tokens))


AnyBatches = ImageBatches | FloatBatches | TextBatches
