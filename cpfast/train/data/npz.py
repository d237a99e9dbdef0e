"""Arrays in an .npz file: x_train, y_train, x_test, y_test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import limited
from cpfast.train.errors import UserError, first_line

KEYS = ("x_train", "y_train", "x_test", "y_test")


def load(path: Path, limit: int | None) -> ImageData:
    """Images uint8 [N, H, W] or [N, H, W, C] and integer labels [N] that count from 0.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    arrays = _read(path)
    train_images = _images(path, "x_train", arrays["x_train"])
    test_images = _images(path, "x_test", arrays["x_test"])
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(
            f"{path}: x_train holds images of {list(train_images.shape[1:])}, "
            f"x_test of {list(test_images.shape[1:])}"
        )
    train_labels = _labels(path, "y_train", arrays["y_train"], len(train_images))
    test_labels = _labels(path, "y_test", arrays["y_test"], len(test_images))
    present = np.unique(train_labels)
    count = len(present)
    if count < 2:
        raise UserError(f"{path}: only one class in y_train, {present[0]}; two at least are needed")
    gaps = np.flatnonzero(present != np.arange(count))
    if len(gaps):
        raise UserError(
            f"{path}: y_train must hold every label from 0 to its largest, {present[-1]}; "
            f"it lacks {gaps[0]}"
        )
    if test_labels.max() >= count:
        raise UserError(
            f"{path}: y_test holds label {test_labels.max()}, y_train only to {count - 1}"
        )
    chosen = limited(train_labels, limit)
    return ImageData(
        torch.from_numpy(np.ascontiguousarray(train_images[chosen])),
        torch.from_numpy(train_labels[chosen]),
        torch.from_numpy(np.ascontiguousarray(test_images)),
        torch.from_numpy(test_labels),
        tuple(str(label) for label in range(count)),
        path.stem,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            # What numpy says of anything else is how to unpickle it, which is never done here.
            if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
                raise UserError(f"{path}: not a readable .npz file (no zip archive)")
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: one array, not an .npz with {', '.join(KEYS)}")
        with archive:
            missing = [key for key in KEYS if key not in archive]
            if missing:
                raise UserError(
                    f"{path}: no array {missing[0]!r}; expected {', '.join(KEYS)}, "
                    f"found {', '.join(archive.files) or 'none'}"
                )
            return {key: archive[key] for key in KEYS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file ({first_line(error)})") from error


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{path}: {key} must be uint8 (0 to 255), got {images.dtype}")
    if images.shape[:1] == (0,):
        raise UserError(f"{path}: {key} is empty, got {list(images.shape)}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] > 4 or 0 in images.shape:
        raise UserError(
            f"{path}: {key} must be [N, H, W] or [N, H, W, C] with C at most 4, "
            f"got {list(images.shape)}"
        )
    return images


def _labels(path: Path, key: str, labels: np.ndarray, count: int) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: {key} must hold integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise UserError(f"{path}: {key} must be [{count}], as its images; got {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise UserError(f"{path}: {key} must count from 0, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)
