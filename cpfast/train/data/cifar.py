"""CIFAR-10 and CIFAR-100 in the binary version (Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html).

A record is a label (CIFAR-100: the coarse one, then the fine one) and 3,072 bytes of the image: its
red, green and blue plane of 32x32. The version for Python is pickled, and unpickling runs whatever
code the file holds, so it is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cpfast.train.data import Layout, layouts
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import limited
from cpfast.train.errors import UserError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    train: tuple[str, ...]
    test: str
    names: str
    labels: int  # bytes of a record; the last one counts
    archive: str


VERSIONS = (
    _Version(
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        1,
        "cifar-10-binary.tar.gz",
    ),
    _Version(("train.bin",), "test.bin", "fine_label_names.txt", 2, "cifar-100-binary.tar.gz"),
)
PICKLED = (("data_batch_1", "batches.meta"), ("train", "meta"))


def holds(root: Path) -> bool:
    return _version(root) is not None or _pickled(root) is not None


def load(root: Path, limit: int | None, progress: bool) -> ImageData:
    """Images of 32x32x3; CIFAR-100 with its fine labels.

    Raises:
        UserError: naming the file and what is wrong with it, or saying what to get instead of the
            pickled version.
    """
    version = _version(root)
    if version is None:
        pickled, archive = _pickled(root), VERSIONS[(root / "meta").is_file()].archive
        raise UserError(
            f"{pickled}: CIFAR's version for Python is pickled, and reading a pickle can run any "
            f"code that is in it; get the binary version, {archive}, from "
            "https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    classes = _names(root / version.names)
    train_images, train_labels = _read(root, version.train, version.labels, classes)
    test_images, test_labels = _read(root, (version.test,), version.labels, classes)
    counts = np.bincount(train_labels, minlength=len(classes))
    if counts.min() == 0:
        raise UserError(f"{root}: no training image of class {classes[int(counts.argmin())]!r}")
    chosen = limited(train_labels, limit)
    return ImageData(
        torch.from_numpy(train_images[chosen]),
        torch.from_numpy(train_labels[chosen]),
        torch.from_numpy(test_images),
        torch.from_numpy(test_labels),
        classes,
        root.name,
    )


def _version(root: Path) -> _Version | None:
    """The version of which a file is there."""
    for version in VERSIONS:
        if any((root / name).is_file() for name in (*version.train, version.test)):
            return version
    return None


def _pickled(root: Path) -> Path | None:
    for names in PICKLED:
        if all((root / name).is_file() for name in names):
            return root / names[0]
    return None


def _names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"{path}: missing; it holds the names of the classes, one a line")
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) < 2:
        raise UserError(f"{path}: expected the names of the classes, one a line; got {len(names)}")
    return names


def _read(
    root: Path, names: tuple[str, ...], label_bytes: int, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of the files, one after another."""
    size = label_bytes + PIXELS
    counts = [_count(root / name, size) for name in names]
    images = np.empty((sum(counts), *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    start = 0
    for name, count in zip(names, counts, strict=True):
        part = _records(root / name, count, size)
        stop = start + count
        labels[start:stop] = part[:, label_bytes - 1]
        images[start:stop] = part[:, label_bytes:].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
        largest = labels[start:stop].max()
        if largest >= len(classes):
            record = int(labels[start:stop].argmax())
            raise UserError(
                f"{root / name}: label {largest} in record {record}, expected 0 to "
                f"{len(classes) - 1}"
            )
        start = stop
    return images, labels


def _count(path: Path, size: int) -> int:
    """How many records of `size` bytes a file holds."""
    if not path.is_file():
        raise UserError(f"{path}: missing")
    length = path.stat().st_size
    if length == 0 or length % size:
        raise UserError(
            f"{path}: truncated or damaged: {length} bytes, expected a multiple of {size} "
            "(a record)"
        )
    return length // size


def _records(path: Path, count: int, size: int) -> np.ndarray:
    """uint8 [count, size]: read, since the process is killed where a mapped file is cut."""
    content = np.fromfile(path, dtype=np.uint8, count=count * size)
    if len(content) < count * size:
        raise UserError(
            f"{path}: truncated while it was read: {len(content)} bytes of {count * size}"
        )
    return content.reshape(count, size)


@layouts.register(
    "cifar", source="Krizhevsky 2009", line="CIFAR's binary version (data_batch_1.bin or train.bin)"
)
def layout() -> Layout:
    return Layout(load, holds)
