"""The two kinds of data sets, in memory: labelled images, and sequences of text."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TOGETHER = 4096  # images


@dataclass(frozen=True)
class ImageData:
    """A labelled image data set on one device.

    Attributes:
        train_images, test_images: uint8 [N, H, W, C].
        train_labels, test_labels: int64 [N], in 0 .. len(classes) - 1.
        classes: the name of each label.
        name: for messages.
        note: what a reader of results must know of the data beside it, or nothing.
        resized: height and width that the images were resized and cropped to; None: they are as
            they were found.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str
    note: str = ""
    resized: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def outputs(self) -> int:
        """How many logits a model needs."""
        return len(self.classes)

    @property
    def train_size(self) -> int:
        return len(self.train_labels)

    @property
    def test_size(self) -> int:
        return len(self.test_labels)

    def mean(self) -> Tensor:
        """Per-pixel mean of the training images in [0, 1]: float32 [H, W, C].

        Summed in integers, so that it is the same on every device and for every order.
        """
        # In parts: on the CPU torch first makes int64 of all that it sums.
        parts = (part.sum(0, dtype=torch.int64) for part in self.train_images.split(_TOGETHER))
        total = torch.stack([*parts]).sum(0)
        return (total.double() / (255 * len(self.train_images))).float()

    def fingerprint(self) -> str:
        """Changes when an image, a label or their order does."""
        crc = _crc(self.train_images, self.train_labels, self.test_images, self.test_labels)
        size = "x".join(str(n) for n in self.train_images.shape)
        return f"{size}+{len(self.test_images)}-{crc:08x}"

    def describe(self) -> str:
        """One line for a run's header."""
        height, width, channels = self.shape
        return (
            f"{self.name}: {self.train_size:,} training and {self.test_size:,} test images of "
            f"{height}x{width}x{channels}, {self.outputs} classes"
        ) + (f"; {self.note}" if self.note else "")

    def to(self, device: torch.device) -> ImageData:
        return dataclasses.replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def with_random_labels(self, seed: int) -> ImageData:
        """Each training label drawn anew, uniformly: nothing is left to learn but by heart.

        The test labels stay the true ones, so that accuracy is that of guessing.
        """
        labels = _generator(seed).integers(self.outputs, size=self.train_size, dtype=np.int64)
        return dataclasses.replace(
            self,
            train_labels=torch.from_numpy(labels).to(self.train_labels.device),
            note=_joined(self.note, "random training labels"),
        )


@dataclass(frozen=True)
class TextData:
    """Sequences of characters on one device, for next-token prediction.

    Attributes:
        train_tokens, test_tokens: uint8 [N, T + 1], positions in `vocabulary`; the first T are
            the inputs, the last T the targets.
        vocabulary: the character of each token.
        name, note: as of ImageData.
    """

    train_tokens: Tensor
    test_tokens: Tensor
    vocabulary: str
    name: str
    note: str = ""

    @property
    def shape(self) -> tuple[int]:
        """Length of a sequence's inputs, T."""
        return (self.train_tokens.shape[1] - 1,)

    @property
    def outputs(self) -> int:
        """How many logits a model needs at each position."""
        return len(self.vocabulary)

    @property
    def train_size(self) -> int:
        return len(self.train_tokens)

    @property
    def test_size(self) -> int:
        return len(self.test_tokens)

    def fingerprint(self) -> str:
        """Changes when a token or the order of the sequences does."""
        crc = _crc(self.train_tokens, self.test_tokens)
        return f"{self.train_size}x{self.shape[0]}+{self.test_size}-{crc:08x}"

    def describe(self) -> str:
        """One line for a run's header."""
        return (
            f"{self.name}: {self.train_size:,} training and {self.test_size:,} test sequences of "
            f"{self.shape[0]} characters, {self.outputs} different ones"
        ) + (f"; {self.note}" if self.note else "")

    def to(self, device: torch.device) -> TextData:
        return dataclasses.replace(
            self,
            train_tokens=self.train_tokens.to(device),
            test_tokens=self.test_tokens.to(device),
        )

    def with_random_labels(self, seed: int) -> TextData:
        """The tokens of each training sequence in an order drawn anew.

        A token is the target of the one before and the input of the next, so targets cannot be
        drawn without the inputs. The order is what links the two: without it only how often a
        character occurs in its sequence is left, as with images only how often a class does. The
        test text stays the true one.
        """
        tokens = _generator(seed).permuted(self.train_tokens.cpu().numpy(), axis=1)
        return dataclasses.replace(
            self,
            train_tokens=torch.from_numpy(tokens).to(self.train_tokens.device),
            note=_joined(self.note, "characters of each training sequence in random order"),
        )


def _crc(*parts: Tensor) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.contiguous().cpu().numpy().data, crc)
    return crc


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _joined(note: str, more: str) -> str:
    return f"{note}; {more}" if note else more
