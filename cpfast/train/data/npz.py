"""Arrays in an .npz file, named as Keras or as MedMNIST publishes them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cpfast.train.data import LAST, Layout, layouts
from cpfast.train.data.arrays import labelled
from cpfast.train.data.sets import FloatData, ImageData
from cpfast.train.data.split import limited
from cpfast.train.errors import UserError, first_line

NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x", "y"),
    ("X", "y"),
)
OF_SAMPLES = ("x", "X", "x_test", "test_images")  # in the order in which they are looked for
MOST_CHANNELS = 4
SHOWN = 6  # names


class Header(NamedTuple):
    """What an array says of itself before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def load(path: Path, limit: int | None) -> ImageData | FloatData:
    """Numbers [N, F], the rows of a table, or [N, C, T], time series: of floating point, and where
    they are [N, F] of any other type too, but for uint8. Without a split a fifth is held out.

    Images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]: channels are at most 4, sides more.
    Labels [N] or [N, 1], whole numbers from 0.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    with _opened(path) as archive:
        found = [name.removesuffix(".npy") for name in archive.namelist()]
        names = next((names for names in NAMES if names[0] in found), NAMES[0])
        missing = [name for name in names if name not in found]
        if missing:
            expected = " or ".join(", ".join(names) for names in NAMES[:3])
            raise UserError(
                f"{path}: no array {missing[0]!r}; expected {expected}; found {_shown(found)}"
            )
        unused = [name for name in found if name not in names]
        if is_numbers(_header(path, archive, names[0])):
            return _load_numbers(path, archive, names, limit, unused)
        if len(names) == 2:
            raise UserError(
                f"{path}: images in {names[0]!r} without a split; expected {', '.join(NAMES[0])}"
            )
        # All before any is read: what does not fit need not fit into memory either.
        x_train, y_train, x_test, y_test = names
        headers = {name: _header(path, archive, name) for name in names}
        sizes = [size_of(path, name, headers[name]) for name in (x_train, x_test)]
        if sizes[0] != sizes[1]:
            raise UserError(f"{path}: {x_train} holds images of {sizes[0]}, {x_test} of {sizes[1]}")
        for images, labels in ((x_train, y_train), (x_test, y_test)):
            check_labels(path, labels, headers[labels], headers[images].shape[0])
        train_labels = whole_labels(path, y_train, _read(archive, y_train))
        test_labels = whole_labels(path, y_test, _read(archive, y_test))
        classes = count_classes(path, y_train, train_labels, y_test, test_labels)
        train_images = channels_last(_read(archive, x_train))
        test_images = channels_last(_read(archive, x_test))
    chosen = limited(train_labels, limit)
    return ImageData(
        torch.from_numpy(np.ascontiguousarray(train_images[chosen])),
        torch.from_numpy(train_labels[chosen]),
        torch.from_numpy(np.ascontiguousarray(test_images)),
        torch.from_numpy(test_labels),
        tuple(str(label) for label in range(classes)),
        path.stem,
        f"not used: {_shown(unused)}" if unused else "",
    )


def samples(path: Path) -> np.ndarray:
    """The array to predict from: x, X or x_test, or the only one.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    with _opened(path) as archive:
        found = [name.removesuffix(".npy") for name in archive.namelist()]
        known = [name for name in OF_SAMPLES if name in found] or found[: len(found) == 1]
        if not known:
            raise UserError(
                f"{path}: which array holds the samples? Expected {', '.join(OF_SAMPLES)}, or one "
                f"alone; found {_shown(found)}"
            )
        if _header(path, archive, known[0]).dtype.kind not in "fiub":
            raise UserError(f"{path}: {known[0]} holds no numbers")
        return _read(archive, known[0])


# --- the archive ------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive, of which whatever cannot be read is a UserError."""
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(f"{path}: one array, not an .npz with {', '.join(NAMES[0])}")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (UserError, MemoryError):
        raise
    # zipfile, what it unpacks with, and numpy have many for damage, encryption and new methods
    except Exception as error:
        raise UserError(f"{path}: not a readable .npz file ({first_line(error)})") from error


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> Header:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:  # 3.0 is 2.0 with other letters in the names of fields
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        held = member.file_size - file.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:
        raise UserError(
            f"{path}: {name} is truncated or damaged: its header says {list(shape)} of {dtype}, "
            f"and there are {held} bytes"
        )
    return Header(shape, dtype)


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _shown(names: Iterable[str]) -> str:
    listed = [name if name.isprintable() else repr(name) for name in names]
    return ", ".join(listed[:SHOWN] + ["..."] * (len(listed) > SHOWN)) or "none"


# --- numbers ----------------------------------------------------------------------------------


def is_numbers(header: Header) -> bool:
    """Rather than images."""
    dimensions, kind = len(header.shape), header.dtype.kind
    return (dimensions in (2, 3) and kind == "f") or (
        dimensions == 2 and kind in "iu" and header.dtype != np.uint8
    )


def _load_numbers(
    path: Path,
    archive: zipfile.ZipFile,
    names: tuple[str, ...],
    limit: int | None,
    unused: list[str],
) -> FloatData:
    headers = {name: _header(path, archive, name) for name in names}
    for values, labels in zip(names[::2], names[1::2], strict=True):
        shape = headers[values].shape
        if (
            not is_numbers(headers[values])
            or 0 in shape
            or shape[1:] != headers[names[0]].shape[1:]
        ):
            raise UserError(
                f"{path}: {values} must be numbers [N, F] or [N, C, T], of the same shape in "
                f"training and test; got {headers[values].dtype} {list(shape)}"
            )
        check_labels(path, labels, headers[labels], shape[0])
    read = {name: _read(archive, name) for name in names}
    label_arrays = [whole_labels(path, name, read[name]) for name in names[1::2]]
    last = names[1::2][-1], label_arrays[-1]
    classes = count_classes(path, names[1], label_arrays[0], *last)
    return labelled(
        str(path),
        read[names[0]],
        label_arrays[0],
        [str(label) for label in range(classes)],
        test=(read[names[2]], label_arrays[1]) if len(names) == 4 else None,
        limit=limit,
        name=path.stem,
        notes=[f"not used: {_shown(unused)}"] if unused else (),
    )


def _reads(path: Path) -> str:
    """Of a file that cannot be read, images: loading it says what is wrong."""
    try:
        with _opened(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            name = next(names[0] for names in NAMES if names[0] in found)
            header = _header(path, archive, name)
    except (UserError, StopIteration):
        return "images"
    if not is_numbers(header):
        return "images"
    return "table" if len(header.shape) == 2 else "series"


# --- images -----------------------------------------------------------------------------------


def size_of(path: Path, name: str, header: Header) -> list[int]:
    """Height, width and channels."""
    if header.dtype != np.uint8:
        raise UserError(f"{path}: {name} must be uint8 (0 to 255), got {header.dtype}")
    shape = header.shape
    size = (*shape[1:], 1) if len(shape) == 3 else shape[1:]
    if _is_channels_first(shape):
        size = (*size[1:], size[0])
    if len(size) != 3 or 0 in shape or size[2] > MOST_CHANNELS or min(size[:2]) <= MOST_CHANNELS:
        raise UserError(
            f"{path}: {name} must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C at most "
            f"{MOST_CHANNELS} and H and W more; got {list(shape)}"
        )
    return list(size)


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] <= MOST_CHANNELS


def channels_last(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[..., None]
    return np.moveaxis(images, 1, -1) if _is_channels_first(images.shape) else images


# --- labels -----------------------------------------------------------------------------------


def check_labels(path: Path, name: str, header: Header, count: int) -> None:
    if header.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} must hold whole numbers, got {header.dtype}")
    if header.shape not in ((count,), (count, 1)):
        raise UserError(
            f"{path}: {name} must be [{count}] or [{count}, 1], one label for each image; got "
            f"{list(header.shape)}"
        )


def whole_labels(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    """int64 [N]."""
    labels = labels.reshape(-1)
    broken = labels[labels != np.floor(labels)]
    if len(broken):
        raise UserError(f"{path}: {name} must hold whole numbers, got {broken[0]}")
    first, last = labels.min().item(), labels.max().item()
    if first < 0 or last >= 2**31:
        raise UserError(f"{path}: {name} must count from 0, got {first} to {last}")
    return labels.astype(np.int64)


def count_classes(
    path: Path, train: str, train_labels: np.ndarray, test: str, test_labels: np.ndarray
) -> int:
    present = np.unique(train_labels)
    count = len(present)
    if count < 2:
        raise UserError(f"{path}: only one class in {train}, {present[0]}; two at least are needed")
    gaps = np.flatnonzero(present != np.arange(count))
    if len(gaps):
        raise UserError(
            f"{path}: {train} must hold every label from 0 to its largest, {present[-1]}; "
            f"it lacks {gaps[0]}"
        )
    if test_labels.max() >= count:
        raise UserError(
            f"{path}: {test} holds label {test_labels.max()}, {train} only to {count - 1}"
        )
    return count


@layouts.register("npz", source="numpy; Keras; MedMNIST", line="an .npz file of arrays")
def layout() -> Layout:
    def read(path: Path, limit: int | None, progress: bool) -> ImageData | FloatData:
        return load(path, limit)

    # Of any other file its error says what is expected.
    return Layout(read, is_file=lambda path: True, order=LAST + 1, reads=_reads)
