"""Data sets as uint8 images in memory: digits, an image folder, or an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpfast.train.errors import UserError, require

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# of Pillow; others (16-bit greyscale, say) lose what they hold in the conversion to 8 bits
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
DIGITS_TRAIN = 256
# The networks halve it twice, and normalising a batch of one needs more than one pixel.
SMALLEST = 8
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class ImageData:
    """A labelled image data set on one device.

    Attributes:
        train_images, test_images: uint8 [N, H, W, C].
        train_labels, test_labels: int64 [N], in 0 .. len(classes) - 1.
        classes: the name of each label.
        name: for messages.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    name: str

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
        total = self.train_images.sum(0, dtype=torch.int64)
        return (total.double() / (255 * len(self.train_images))).float()

    def fingerprint(self) -> str:
        """Changes when an image, a label or their order does."""
        crc = 0
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            crc = zlib.crc32(part.contiguous().cpu().numpy().tobytes(), crc)
        size = "x".join(str(n) for n in self.train_images.shape)
        return f"{size}+{len(self.test_images)}-{crc:08x}"

    def to(self, device: torch.device) -> ImageData:
        return ImageData(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.classes,
            self.name,
        )


def load(source: str, limit: int | None = None, progress: bool = False) -> ImageData:
    """Load a data set by name or path; `limit` keeps that many training images, stratified.

    Raises:
        UserError: naming the path and what is wrong with it.
    """
    if source == "digits":
        data = _digits(limit)
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            data = _folder(path, limit, progress)
        elif path.is_file():
            data = _npz(path, limit)
        else:
            raise UserError(
                f"--data {source}: no such folder or file "
                "(expected 'digits', an image folder, or an .npz file)"
            )
    height, width, _ = data.shape
    if min(height, width) < SMALLEST:
        raise UserError(
            f"--data {source}: images of {height}x{width} are too small, "
            f"{SMALLEST}x{SMALLEST} at least"
        )
    return data


def stratified(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Positions of `count` samples with each class's share kept: sorted int64 [count].

    Shares are rounded by largest remainder, at least one sample a class; which samples are
    taken depends on `seed` alone.

    Raises:
        UserError: more samples asked for than there are, or fewer than there are classes.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if not len(classes) <= count <= len(labels):
        raise UserError(
            f"--limit must be in {len(classes)} (classes) .. {len(labels)} (training images), "
            f"got {count}"
        )
    share = sizes * (count / len(labels))
    take = np.maximum(np.floor(share), 1).astype(np.int64)
    while take.sum() < count:
        take[np.argmax(np.where(take < sizes, share - take, -np.inf))] += 1
    while take.sum() > count:
        take[np.argmax(np.where(take > 1, take - share, -np.inf))] -= 1
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _digits(limit: int | None) -> ImageData:
    sklearn_datasets = require("sklearn.datasets", "--data digits")
    bunch = sklearn_datasets.load_digits()
    # 0 .. 16 to 0 .. 255
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train = stratified(labels, DIGITS_TRAIN)
    test = np.setdiff1d(np.arange(len(labels)), train)
    train = _limited(labels[train], limit, train)
    return ImageData(
        torch.from_numpy(images[train]),
        torch.from_numpy(labels[train]),
        torch.from_numpy(images[test]),
        torch.from_numpy(labels[test]),
        tuple(str(digit) for digit in range(10)),
        "digits",
    )


def _limited(labels: np.ndarray, limit: int | None, positions: np.ndarray) -> np.ndarray:
    return positions if limit is None else positions[stratified(labels, limit)]


# --- image folder ---------------------------------------------------------------------------


def _folder(path: Path, limit: int | None, progress: bool) -> ImageData:
    root = _find_root(path)
    if not (root / "test").is_dir():
        raise UserError(f"{root}: no test/ beside train/; expected test/<class>/<image>")
    classes = _class_names(root / "train")
    unknown = sorted(set(_class_names(root / "test")) - set(classes))
    if unknown:
        raise UserError(f"{root / 'test'}: class {unknown[0]!r} is not in {root / 'train'}")
    train_paths, train_labels = _list_images(root / "train", classes)
    test_paths, test_labels = _list_images(root / "test", classes)
    if not test_paths:
        raise UserError(f"{root / 'test'}: no images in the class folders")
    chosen = _limited(train_labels, limit, np.arange(len(train_labels)))
    train_paths = [train_paths[i] for i in chosen]
    images = _decode(train_paths + test_paths, progress)
    return ImageData(
        torch.from_numpy(images[: len(train_paths)]),
        torch.from_numpy(train_labels[chosen]),
        torch.from_numpy(images[len(train_paths) :]),
        torch.from_numpy(test_labels),
        classes,
        root.name,
    )


def _find_root(path: Path) -> Path:
    """The folder that holds train/: `path` itself, or the only such folder inside it."""
    if (path / "train").is_dir():
        return path
    inside = sorted(p.parent for p in path.glob("*/train") if p.is_dir())
    if len(inside) == 1:
        return inside[0]
    found = f"several folders with one: {inside[0].name}, {inside[1].name}" if inside else "none"
    raise UserError(
        f"{path}: no train/ folder ({found}); expected train/<class>/<image> and "
        "test/<class>/<image>"
    )


def _class_names(split: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{split}: no class folders; expected {split.name}/<class>/<image>")
    if len(names) == 1 and split.name == "train":
        raise UserError(f"{split}: only one class, {names[0]!r}; two at least are needed")
    return tuple(names)


def _list_images(split: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = split / name
        files = [
            p
            for p in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        ]
        if not files and split.name == "train":
            raise UserError(f"{folder}: no images ({', '.join(SUFFIXES)})")
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64)


def _decode(paths: list[Path], progress: bool) -> np.ndarray:
    """uint8 [N, H, W, C]; C is 1 if all are greyscale, else 3."""
    image_module = require("PIL.Image", "reading an image folder")
    tqdm = require("tqdm", "the progress bar").tqdm
    # None hides the bar where the output is no terminal
    bar = tqdm(total=len(paths), desc="decoding", unit="image", leave=False,
               disable=None if progress else True)  # fmt: skip

    def read(path: Path) -> np.ndarray:
        try:
            with image_module.open(path) as image:
                if image.mode not in MODES:
                    raise UserError(
                        f"{path}: an image of mode {image.mode!r}; expected {', '.join(MODES)}"
                    )
                if _is_transparent(image):
                    raise UserError(f"{path}: has transparent pixels; images must be opaque")
                grey = image.mode in ("1", "L", "LA")
                return np.asarray(image.convert("L" if grey else "RGB"))
        except UserError:
            raise
        # Pillow's plugins raise nearly anything on a damaged file.
        except Exception as error:
            raise UserError(f"cannot read image {path}: {_first_line(error)}") from error

    first = read(paths[0])
    height, width = first.shape[:2]
    images = np.empty((len(paths), height, width, 3), dtype=np.uint8)

    def place(position: int) -> bool:
        pixels = read(paths[position])
        if pixels.shape[:2] != (height, width):
            raise UserError(
                f"all images must have one size: {paths[0]} is {width}x{height}, "
                f"{paths[position]} is {pixels.shape[1]}x{pixels.shape[0]}"
            )
        colour = pixels.ndim == 3
        images[position] = pixels if colour else pixels[..., None]
        return colour

    colour = False
    with bar, ThreadPoolExecutor() as pool:
        try:
            for is_colour in pool.map(place, range(len(paths))):
                colour |= is_colour
                bar.update()
        except BaseException:
            # without it the pool would first decode all that is queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images if colour else np.ascontiguousarray(images[..., :1])


def _is_transparent(image: Any) -> bool:
    """Whether a pixel of a Pillow image is not fully opaque."""
    if image.mode not in ("LA", "P", "RGBA") and "transparency" not in image.info:
        return False
    return image.convert("RGBA").getextrema()[3][0] < 255


# --- .npz -----------------------------------------------------------------------------------


def _npz(path: Path, limit: int | None) -> ImageData:
    arrays = _read_npz(path)
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
    chosen = _limited(train_labels, limit, np.arange(len(train_labels)))
    return ImageData(
        torch.from_numpy(np.ascontiguousarray(train_images[chosen])),
        torch.from_numpy(train_labels[chosen]),
        torch.from_numpy(np.ascontiguousarray(test_images)),
        torch.from_numpy(test_labels),
        tuple(str(label) for label in range(count)),
        path.stem,
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: one array, not an .npz with {', '.join(NPZ_KEYS)}")
        with archive:
            missing = [key for key in NPZ_KEYS if key not in archive]
            if missing:
                raise UserError(
                    f"{path}: no array {missing[0]!r}; expected {', '.join(NPZ_KEYS)}, "
                    f"found {', '.join(archive.files) or 'none'}"
                )
            return {key: archive[key] for key in NPZ_KEYS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file ({_first_line(error)})") from error


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{path}: {key} must be uint8 (0 to 255), got {images.dtype}")
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


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
