"""Data sets in memory: labelled images, labelled numbers, and sequences of text."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cpfast.train.data.features import Column

_TOGETHER = 4096  # samples
_SUMMED = 2**22  # bytes of images at a time

Self = TypeVar("Self", bound="_Labelled")


class _Labelled:
    """What images and numbers have in common: a label each."""

    train_labels: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    note: str

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

    def to(self: Self, device: torch.device) -> Self:
        values = vars(self).items()
        moved = {key: value.to(device) for key, value in values if isinstance(value, Tensor)}
        return _replace(self, **moved)

    def with_test(self: Self, index: Tensor) -> Self:
        """Of the test samples those at `index`, int64 [n]."""
        return _with_test(self, index)

    def with_train(self: Self, index: Tensor, note: str) -> Self:
        """Of the training samples those at `index`, int64 [n]; `note` says of which."""
        return _with_train(self, index, note)

    def with_random_labels(self: Self, seed: int) -> Self:
        """Each training label drawn anew, uniformly: nothing is left to learn but by heart.

        The test labels stay the true ones, so that accuracy is that of guessing.
        """
        labels = _generator(seed).integers(self.outputs, size=self.train_size, dtype=np.int64)
        return _replace(
            self,
            train_labels=torch.from_numpy(labels).to(self.train_labels.device),
            note=_joined(self.note, "random training labels"),
        )


@dataclass(frozen=True)
class ImageData(_Labelled):
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
    def reads(self) -> str:
        """What kind of data it is, of `KINDS`."""
        return "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    def mean(self) -> Tensor:
        """Per-pixel mean of the training images in [0, 1]: float32 [H, W, C].

        Summed in integers, so that it is the same on every device and for every order.
        """
        total = torch.zeros(self.shape, dtype=torch.int64, device=self.train_images.device)
        # In parts: on the CPU torch first makes int64 of all that it sums.
        for part in self.train_images.split(max(1, _SUMMED // total.numel())):
            total += part.sum(0, dtype=torch.int64)
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


@dataclass(frozen=True)
class FloatData(_Labelled):
    """Labelled numbers on one device: the rows of a table, or time series of one length.

    Attributes:
        train_values, test_values: float32, finite, [N, F] of a table, [N, C, T] of series of C
            channels.
        train_labels, test_labels, classes, name, note: as of ImageData.
        columns: what the features were made of, where the table's columns have names.
    """

    train_values: Tensor
    train_labels: Tensor
    test_values: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str
    note: str = ""
    columns: tuple[Column, ...] = ()

    @property
    def reads(self) -> str:
        return "table" if self.train_values.dim() == 2 else "series"

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of features; or of channels, and the length."""
        return tuple(self.train_values.shape[1:])

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training samples, float32, [F] or [C, 1].

        By feature, or by channel over all times. Where a feature is constant the deviation is 1,
        which makes it zero. Summed on the CPU in float64, so that it is the same on every device.
        """
        count = self.train_values[:, :1].numel() if self.reads == "series" else self.train_size
        dims = (0, 2) if self.reads == "series" else (0,)

        def mean_of(function: Any) -> Tensor:
            parts = (function(part.cpu().double()) for part in self.train_values.split(_TOGETHER))
            total = sum(part.sum(dims, keepdim=True)[0] for part in parts)
            assert isinstance(total, Tensor)
            return total / count

        mean = mean_of(lambda part: part)
        deviation = mean_of(lambda part: (part - mean).square()).sqrt()
        # What rounding leaves of a constant is no spread.
        is_constant = deviation <= 1e-7 * mean.abs()
        return mean.float(), deviation.masked_fill(is_constant, 1.0).float()

    def fingerprint(self) -> str:
        """Changes when a number, a label or their order does."""
        crc = _crc(self.train_values, self.train_labels, self.test_values, self.test_labels)
        size = "x".join(str(n) for n in self.train_values.shape)
        return f"{size}+{self.test_size}-{crc:08x}"

    def describe(self) -> str:
        """One line for a run's header."""
        if self.reads == "table":
            what, of = "rows", f"{self.shape[0]} features"
        else:
            what, of = "series", f"length {self.shape[1]} in {_counted(self.shape[0], 'channel')}"
        return (
            f"{self.name}: {self.train_size:,} training and {self.test_size:,} test {what} of "
            f"{of}, {self.outputs} classes"
        ) + (f"; {self.note}" if self.note else "")


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
    def reads(self) -> str:
        """What kind of data it is, of `KINDS`."""
        return "text"

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

    def with_test(self, index: Tensor) -> TextData:
        """Of the test sequences those at `index`, int64 [n]."""
        return _with_test(self, index)

    def with_train(self, index: Tensor, note: str) -> TextData:
        """Of the training sequences those at `index`, int64 [n]; `note` says of which."""
        return _with_train(self, index, note)

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


def _replace(data: Any, **changes: Any) -> Any:
    return dataclasses.replace(data, **changes)


def _with_test(data: Any, index: Tensor) -> Any:
    some = {k: v[index] for k, v in vars(data).items() if k.startswith("test_")}
    return _replace(
        data, **some, note=_joined(data.note, f"tested on {len(index):,} of {data.test_size:,}")
    )


def _with_train(data: Any, index: Tensor, note: str) -> Any:
    some = {k: v[index] for k, v in vars(data).items() if k.startswith("train_")}
    return _replace(data, **some, note=_joined(data.note, note))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _crc(*parts: Tensor) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.contiguous().cpu().numpy().data, crc)
    return crc


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _joined(note: str, more: str) -> str:
    return f"{note}; {more}" if note else more


Data = ImageData | FloatData | TextData
