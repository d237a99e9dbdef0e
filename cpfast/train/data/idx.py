"""MNIST's format: <prefix>train-images-idx3-ubyte and its like, plain or .gz.

The header is big-endian: a magic number (0, 0, 8 for uint8, number of dimensions), then the size
of each dimension (LeCun et al. 1998). Prefixes and the name `test` for `t10k` are EMNIST's (Cohen
et al. 2017, 1702.05373), whose images are stored transposed and stay so; its letters count from 1.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from cpfast.train.data import Layout, layouts
from cpfast.train.data.listing import is_hidden
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import limited
from cpfast.train.errors import UserError, first_line

TRAIN_IMAGES = re.compile(r"(?P<prefix>.*?)train-images[-.]idx3-ubyte(\.gz)?")
# zlib's limit is 1032:1, so a header that promises more is damaged
LARGEST_RATIO = 1032


def holds(root: Path) -> bool:
    return bool(_prefixes(root))


def is_idx(path: Path) -> bool:
    """Whether a file is called as training images are."""
    return TRAIN_IMAGES.fullmatch(path.name) is not None


def load(path: Path, limit: int | None, progress: bool) -> ImageData:
    """From a folder; where that holds several sets, from the file of one's training images.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    if path.is_dir():
        folder, prefixes = path, _prefixes(path)
        if len(prefixes) > 1:
            raise UserError(
                f"{folder}: several data sets ({', '.join(prefixes)}); give the path of one's "
                "file of training images"
            )
    else:
        folder, prefixes = path.parent, [TRAIN_IMAGES.sub(r"\g<prefix>", path.name)]
    prefix = prefixes[0]
    train_images, train_labels, _ = _read_split(folder, prefix, ("train",))
    test_images, test_labels, test_file = _read_split(folder, prefix, ("t10k", "test"))
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(
            f"{folder}: training images of {_size(train_images)}, test images of "
            f"{_size(test_images)}"
        )
    first, last = int(train_labels.min()), int(train_labels.max())
    counts = np.bincount(train_labels)[first:]
    if first > 1 or len(counts) < 2 or counts.min() == 0:
        raise UserError(
            f"{folder}: the training labels are {_few(np.unique(train_labels))}; expected two "
            "classes at least, and each label from 0 (or 1) to the largest"
        )
    if test_labels.min() < first or test_labels.max() > last:
        raise UserError(
            f"{test_file}: labels {test_labels.min()} to {test_labels.max()}, those of the "
            f"training images are {first} to {last}"
        )
    chosen = limited(train_labels, limit)
    return ImageData(
        torch.from_numpy(train_images[chosen]),
        torch.from_numpy(train_labels[chosen] - first),
        torch.from_numpy(test_images),
        torch.from_numpy(test_labels - first),
        tuple(str(label) for label in range(first, last + 1)),
        prefix.strip("-_. ") or folder.name,
    )


def _prefixes(folder: Path) -> list[str]:
    names = (file.name for file in folder.iterdir() if not is_hidden(file.name))
    return sorted({match["prefix"] for match in map(TRAIN_IMAGES.fullmatch, names) if match})


def _read_split(
    folder: Path, prefix: str, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, Path]:
    """Images uint8 [N, H, W, 1], labels int64 [N], and the file of the labels."""
    images_file = _find(folder, prefix, names, "images", 3)
    labels_file = _find(folder, prefix, names, "labels", 1)
    images, labels = _read(images_file, 3), _read(labels_file, 1)
    if len(images) != len(labels):
        raise UserError(f"{labels_file}: {len(labels)} labels of {len(images)} images")
    return images[..., None], labels.astype(np.int64), labels_file


def _find(folder: Path, prefix: str, names: tuple[str, ...], what: str, dimensions: int) -> Path:
    """The first of the names and spellings under which a file is there."""
    spellings = [
        folder / f"{prefix}{name}-{what}{separator}idx{dimensions}-ubyte{end}"
        for name in names
        for separator in "-."
        for end in ("", ".gz")
    ]
    for path in spellings:
        if path.is_file():
            return path
    raise UserError(f"{spellings[0]}: missing, as is its .gz")


def _read(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in a file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 * (1 + dimensions))
            if len(header) < 4 * (1 + dimensions):
                raise UserError(f"{path}: truncated: {len(header)} bytes")
            magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if magic != 0x800 + dimensions:
                raise UserError(
                    f"{path}: magic number {magic}, expected {0x800 + dimensions} "
                    f"(uint8, {dimensions} dimensions)"
                )
            size = math.prod(shape)
            if size == 0:
                raise UserError(f"{path}: empty: its header says {shape}")
            if size > LARGEST_RATIO * path.stat().st_size:
                raise UserError(f"{path}: truncated or damaged: its header says {shape}")
            array = np.empty(size, dtype=np.uint8)
            got = 0
            while got < size and (more := file.readinto(array[got:].data)):
                got += more
            if got < size or file.read(1):
                raise UserError(
                    f"{path}: {'truncated' if got < size else 'damaged'}: its header says {shape}, "
                    f"{size} bytes; there are {got if got < size else 'more'}"
                )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: truncated or damaged ({first_line(error)})") from error
    return array.reshape(shape)


def _size(images: np.ndarray) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"


def _few(labels: np.ndarray) -> str:
    shown = ", ".join(str(label) for label in labels[:12])
    return f"{shown}, ..." if len(labels) > 12 else shown


@layouts.register(
    "idx",
    source="LeCun et al. 1998; arXiv 1702.05373",
    line="MNIST-style train-images-idx3-ubyte, with or without .gz",
)
def layout() -> Layout:
    # They hold digits or letters, as MNIST's own.
    return Layout(load, holds, is_idx, has_sides=lambda path: True)
