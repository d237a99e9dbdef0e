"""What a step reads: a batch gathered by index; images augmented, in the precision of the run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import cpfast
from cpfast.detection.extra import Batches
from cpfast.pruning import Draw
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData

# The paper's augmentation (2506.15954).
ROTATION = 15.0  # degrees
SHIFT = 0.1  # of the height and of the width
_PROBE_STREAM = 2**20  # of the draws, beyond any number of passes
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def of(config: Config, data: ImageData | TextData) -> ImageBatches | TextBatches:
    """The batches of a data set."""
    return ImageBatches(config, data) if isinstance(data, ImageData) else TextBatches(data)


def fixed(
    config: Config,
    data: ImageData | TextData,
    batches: ImageBatches | TextBatches,
    model: nn.Module,
) -> Batches:
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

    def train(self, index: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented by draws of (seed, sample, draw) alone.

        Args:
            index, draw: [B] int64; `draw` counts the passes over the data from the training's
                beginning.
        """
        images = cpfast.ops.augment_batch(
            self._data.train_images,
            index,
            seed=self._config.seed,
            epoch=0,
            repeat=draw,
            flip=self._config.flip,
            shift=SHIFT,
            rotation=ROTATION,
            mean=self._mean,
            dtype=self._dtype,
        )
        return images, self._data.train_labels[index]

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


class TextBatches:
    """Tokens [B, T] int64, and at each position the one that follows. Nothing is augmented."""

    def __init__(self, data: TextData) -> None:
        self._data = data

    def train(self, index: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        return self._next_tokens(self._data.train_tokens[index])

    def plain(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.train(index, index)

    def test(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._next_tokens(self._data.test_tokens[index])

    @staticmethod
    def _next_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens.long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
