"""Images that lie in files of their own: decoded once, and kept beside them for the next time.

`.cpfast-cache/` in the data's folder holds the decoded images of all files, and those of each
limit that was asked for, in uncompressed .npz files named after what they were made from: paths,
sizes and times of change. Whatever does not fit is decoded anew, and replaced.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpfast.train.data.image_file import read_image
from cpfast.train.data.listing import Files, passed_over
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import limited
from cpfast.train.errors import UserError, first_line, require
from cpfast.train.progress import bar
from cpfast.train.runfolder import RunFolder, write_atomically

__all__ = ["CACHE", "load", "read_image"]

# of Pillow; others (16-bit greyscale, say) lose what they hold in the conversion to 8 bits
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
CACHE = ".cpfast-cache"
FORMAT = "cpfast-decoded-2"
TOGETHER = 64  # images a thread decodes at a time
SMALL = 64 * 64  # pixels


def load(
    root: Path,
    train: Files,
    test: Files,
    classes: tuple[str, ...],
    limit: int | None,
    progress: bool,
    note: str = "",
) -> ImageData:
    """The images of all files, which must be of one size; C is 1 if all are greyscale, else 3.

    What was passed over beside them is added to the note.

    Raises:
        UserError: naming the file that cannot be read, is transparent or of another size.
    """
    chosen = limited(train.labels, limit)
    labels = train.labels[chosen]
    keep = np.concatenate([np.arange(len(train.paths))[chosen], np.arange(-len(test.paths), 0)])
    images = _read(root, train.paths + test.paths, keep, progress)
    return ImageData(
        torch.from_numpy(images[: len(labels)]),
        torch.from_numpy(labels),
        torch.from_numpy(images[len(labels) :]),
        torch.from_numpy(test.labels),
        classes,
        root.name,
        "; ".join(part for part in (note, passed_over(train.others + test.others)) if part),
    )


def _read(root: Path, paths: list[str], keep: np.ndarray, progress: bool) -> np.ndarray:
    """The images of the paths at `keep`: uint8 [N, H, W, C]."""
    whole = len(keep) == len(paths)
    wanted = [paths[i] for i in keep]
    # Before decoding: a file that changes meanwhile does not fit what is stored of it.
    own = root / CACHE / f"{'all' if whole else len(keep)}-{_key(root, wanted)}.npz"
    images = _stored(own, len(wanted))
    if images is None and not whole:
        images = _stored(root / CACHE / f"all-{_key(root, paths)}.npz", len(paths), keep)
    if images is None:
        images, is_colour = _decode(wanted, progress)
        _store(own, images, is_colour)
    return images


# --- cache ----------------------------------------------------------------------------------


def _key(root: Path, paths: list[str]) -> str:
    """Changes with the order, the names, the sizes and the times of the files.

    The time of the last change of a file's status (ctime) is among them, which no program can set
    back. Its number (inode) is not: it changes with every mount of some network file systems.
    """
    digest = hashlib.sha256(FORMAT.encode())
    for path in paths:
        status = _status(path)
        digest.update(os.fsencode(path.removeprefix(str(root)).lstrip("/")))
        times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(b"\0%d\0%d\0%d\0" % times)
    return digest.hexdigest()[:16]


def _status(path: str) -> os.stat_result:
    """Of a regular file: reading a pipe or a device may never end."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"cannot read image {path}: not a regular file")
    return status


def _stored(path: Path, count: int, keep: np.ndarray | slice = slice(None)) -> np.ndarray | None:
    """Those at `keep` of the `count` images in a file of the cache; None if it is missing or
    damaged (the archive has checksums).
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, is_colour = archive["images"], archive["is_colour"]
    # numpy and zipfile have many for a damaged file, and a size that is damaged is a MemoryError
    except Exception:
        return None
    if (
        images.dtype != np.uint8
        or is_colour.dtype != bool
        or images.shape[:1] != (count,)
        or is_colour.shape != (count,)
        or images.ndim != 4
        or images.shape[-1] != (3 if is_colour.any() else 1)
    ):
        return None
    # As if these alone had been decoded.
    return _channels(images[keep], is_colour[keep])


def _store(path: Path, images: np.ndarray, is_colour: np.ndarray) -> None:
    """Keep images in place of those that were kept under an earlier key."""
    try:
        path.parent.mkdir(exist_ok=True)
        with RunFolder(path.parent).locked():
            write_atomically(path, lambda file: np.savez(file, images=images, is_colour=is_colour))
            for other in path.parent.glob(f"{path.name.split('-')[0]}-*.npz"):
                if other != path:
                    other.unlink(missing_ok=True)
    except (OSError, UserError) as error:
        reason = f"{path.parent}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(
            f"cpfast: note: the decoded images are not kept for the next time: {reason}",
            file=sys.stderr,
        )


# --- decoding -------------------------------------------------------------------------------


def _decode(paths: list[str], progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, H, W, C], and which images are not greyscale: bool [N]."""
    image_module = require("PIL.Image", "reading an image folder")
    upright = require("PIL.ImageOps", "reading an image folder").exif_transpose
    shown = bar("decoding", progress, total=len(paths), unit="image")

    def read(path: str) -> np.ndarray:
        try:
            # Pillow maps some formats that it is given by name, and the process is killed where
            # a mapped file is cut.
            with open(path, "rb") as file, image_module.open(file) as image:
                if image.mode not in MODES:
                    raise UserError(
                        f"{path}: an image of mode {image.mode!r}; expected {', '.join(MODES)}"
                    )
                if _is_transparent(image):
                    raise UserError(f"{path}: has transparent pixels; images must be opaque")
                upright(image, in_place=True)
                grey = image.mode in ("1", "L", "LA")
                return np.asarray(image.convert("L" if grey else "RGB"))
        except UserError:
            raise
        # Pillow's plugins raise nearly anything on a damaged file.
        except Exception as error:
            raise UserError(f"cannot read image {path}: {first_line(error)}") from error

    height, width = read(paths[0]).shape[:2]
    images = np.empty((len(paths), height, width, 3), dtype=np.uint8)
    is_colour = np.empty(len(paths), dtype=bool)

    def place(start: int) -> int:
        part = range(start, min(start + TOGETHER, len(paths)))
        for position in part:
            pixels = read(paths[position])
            if pixels.shape[:2] != (height, width):
                raise UserError(
                    f"all images must have one size: {paths[0]} is {width}x{height}, "
                    f"{paths[position]} is {pixels.shape[1]}x{pixels.shape[0]}"
                )
            is_colour[position] = pixels.ndim == 3
            images[position] = pixels if is_colour[position] else pixels[..., None]
        return len(part)

    # Small images are decoded with the interpreter's lock changing hands all the time: on two
    # cores one of 32x32 takes 135 us on one thread and 195 us on six, one of 224x224 takes 350 us
    # on one thread, 190 us on two and 290 us on six.
    threads = 1 if height * width <= SMALL else os.cpu_count()
    with shown, ThreadPoolExecutor(threads) as pool:
        try:
            for count in pool.map(place, range(0, len(paths), TOGETHER)):
                shown.update(count)
        except BaseException:
            # without it the pool would first decode all that is queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _channels(images, is_colour), is_colour


def _channels(images: np.ndarray, is_colour: np.ndarray) -> np.ndarray:
    return images if is_colour.any() else np.ascontiguousarray(images[..., :1])


def _is_transparent(image: Any) -> bool:
    """Whether a pixel of a Pillow image that is not loaded yet is not fully opaque."""
    if image.mode in ("LA", "P", "RGBA"):
        return image.convert("RGBA").getextrema()[3][0] < 255
    if "transparency" not in image.info:
        return False
    # The grey or colour that stands for transparent, in PNG of as many bits as the file has; what
    # Pillow makes of the pixels has 8. Of 16 bits the lower ones are lost: a colour that differs
    # in them alone is refused too.
    key = np.array(image.info["transparency"])
    stored = image.tile[0][3] if image.format == "PNG" else ""
    key = key >> 8 if stored == "RGB;16B" else key * {"L;2": 85, "L;4": 17}.get(stored, 1)
    pixels = np.asarray(image.convert("L" if image.mode == "1" else image.mode))
    return bool((np.atleast_3d(pixels) == key).all(-1).any())
