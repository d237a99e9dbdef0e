"""The decoded images of a folder, kept beside the files for the next time.

`.cpfast-cache/` in the data's folder holds the decoded images of all files, and those of each
limit and size that was asked for, in uncompressed .npz files named after what they were made from:
paths, sizes and times of change. Whatever does not fit is decoded anew, and replaced. What does
not fit in memory is mapped.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from cpfast.train.data import memory
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder, write_atomically

CACHE = ".cpfast-cache"
FORMAT = "cpfast-decoded-3"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of what follows it
_READ = 2**20  # bytes at a time


class Facts(NamedTuple):
    """What there is to say of each image: sizes int32 [N, 2], height and width before it was
    resized, upright; the others bool [N]."""

    sizes: np.ndarray
    is_colour: np.ndarray
    is_transparent: np.ndarray

    def at(self, keep: np.ndarray) -> Facts:
        return Facts(*(values[keep] for values in self))


class Kept(NamedTuple):
    """Images uint8 [N, H, W, C], C 3 if any is of colour, else 1, and what is known of them.

    Mapped images are read-only.
    """

    images: np.ndarray
    facts: Facts

    @property
    def is_mapped(self) -> bool:
        return isinstance(self.images, np.memmap)


def place(root: Path, paths: list[str], size: tuple[int, int] | None, of: str) -> Path:
    """Where the images of these files are kept; `of` says which they are, as "all"."""
    resized = "" if size is None else f"_{size[0]}x{size[1]}"
    return root / CACHE / f"{of}{resized}-{_key(root, paths)}.npz"


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


# --- reading --------------------------------------------------------------------------------


def read(path: Path, count: int) -> Kept | None:
    """The `count` images of a file, mapped where memory is too small; None if it is missing or
    damaged (the archive has checksums).
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            facts = Facts(*(_array(archive, name) for name in Facts._fields))
            shape = _checked_shape(archive, count, facts)
            mapped = not memory.fits(math.prod(shape))
            images = _map(file, archive, shape) if mapped else _array(archive, "images")
    # numpy and zipfile have many for a damaged file, and a size that is damaged is a MemoryError
    except Exception:
        return None
    return Kept(images, facts)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _checked_shape(archive: zipfile.ZipFile, count: int, facts: Facts) -> tuple[int, ...]:
    """
    Raises:
        ValueError: the images' header does not fit the file, or the facts.
    """
    member = archive.getinfo("images.npy")
    with archive.open(member) as content:
        np.lib.format.read_magic(content)
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
        fits = member.file_size - content.tell() == math.prod(shape)
    sizes, *flags = facts
    if (
        not fits
        or member.compress_type != zipfile.ZIP_STORED
        or dtype != np.uint8
        or len(shape) != 4
        or shape[0] != count
        or shape[3] != (3 if facts.is_colour.any() else 1)
        or (sizes.dtype, sizes.shape) != (np.int32, (count, 2))
        or any((flag.dtype, flag.shape) != (bool, (count,)) for flag in flags)
    ):
        raise ValueError("not what is kept here")
    return shape


def _map(file: IO[bytes], archive: zipfile.ZipFile, shape: tuple[int, ...]) -> np.ndarray:
    """After one pass over it, at whose end the archive compares checksums."""
    member = archive.getinfo("images.npy")
    with archive.open(member) as content:
        while content.read(_READ):
            pass
    file.seek(member.header_offset)
    lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    begin = file.tell() + sum(lengths) + member.file_size - math.prod(shape)
    return np.memmap(file, np.uint8, "r", begin, shape)


# --- writing --------------------------------------------------------------------------------


def store(path: Path, shape: tuple[int, ...], images: Iterable[np.ndarray], facts: Facts) -> None:
    """Keep images, which come in parts, in place of those that were kept under an earlier key.

    The facts are written after the last part, which may still change them.

    Raises:
        OSError: it cannot be written.
        UserError: another process writes here.
    """

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("images.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for part in images:
                    member.write(part.data)
            for name, values in facts._asdict().items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)

    path.parent.mkdir(exist_ok=True)
    with RunFolder(path.parent).locked():
        write_atomically(path, write)
        for other in path.parent.glob(f"{path.name.split('-')[0]}-*.npz"):
            if other != path:
                other.unlink(missing_ok=True)
