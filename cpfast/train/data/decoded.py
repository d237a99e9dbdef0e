"""Images that lie in files of their own: decoded once, to one size, and kept for the next time."""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cpfast.train.data import image_file, kept, memory
from cpfast.train.data.image_file import read_image
from cpfast.train.data.kept import CACHE, Facts, Kept
from cpfast.train.data.listing import Files, passed_over
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import limited
from cpfast.train.errors import UserError
from cpfast.train.progress import bar

__all__ = ["CACHE", "load", "read_image", "resized"]

TOGETHER = 16  # images a thread decodes at a time
SMALL = 64 * 64  # pixels
# Without --image-size: images that are all of one size stay as they are up to AS_THEY_ARE a side
# (STL-10's, the largest of the usual small ones); the shorter sides of others become DEFAULT.
# Costs grow with the square: a step at 224 takes twelve times as long as at 64, up to which the
# networks' stems keep the full resolution.
AS_THEY_ARE = 96
DEFAULT = 64

T = TypeVar("T")


def load(
    root: Path,
    train: Files,
    test: Files,
    classes: tuple[str, ...],
    limit: int | None,
    progress: bool,
    note: str = "",
    size: tuple[int, int] | None = None,
) -> ImageData:
    """The images of all files; C is 1 if all are greyscale, else 3.

    Args:
        size: height and width that they are resized and cropped to, see `read_image`. None: as
            they are where they are of one size and small, else a square of `DEFAULT` a side, or of
            the median shorter side where that is less.

    What was done to them, and what was passed over beside them, is added to the note. Where they
    take more than `memory.SHARE` of the free memory, they are mapped.

    Raises:
        UserError: naming the file that cannot be read.
    """
    chosen = limited(train.labels, limit)
    labels = train.labels[chosen]
    keep = np.concatenate([np.arange(len(train.paths))[chosen], np.arange(-len(test.paths), 0)])
    found = _read(root, train.paths + test.paths, keep, size, progress)
    notes = (note, *_notes(found, size), passed_over(train.others + test.others))
    return ImageData(
        _tensor(found.images[: len(labels)]),
        torch.from_numpy(labels),
        _tensor(found.images[len(labels) :]),
        torch.from_numpy(test.labels),
        classes,
        root.name,
        "; ".join(part for part in notes if part),
        resized(found.facts.sizes, size),
    )


def resized(sizes: np.ndarray, asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width that images of these sizes are resized to; None: they stay as they are."""
    if asked is not None or (_is_one(sizes) and sizes[0].max() <= AS_THEY_ARE):
        return asked
    side = min(DEFAULT, int(np.median(sizes.min(1))))
    return side, side


def _is_one(sizes: np.ndarray) -> bool:
    return bool((sizes == sizes[0]).all())


def _notes(found: Kept, asked: tuple[int, int] | None) -> Iterator[str]:
    sizes, is_colour, is_transparent = found.facts
    height, width = found.images.shape[1:3]
    if (sizes != (height, width)).any():
        were = f"{sizes[0, 0]}x{sizes[0, 1]}" if _is_one(sizes) else "any sizes"
        choose = " (--image-size chooses)" if asked is None else ""
        yield f"of {were}, resized and cropped to {height}x{width}{choose}"
    if 0 < (grey := int((~is_colour).sum())) < len(is_colour):
        yield f"{_images(grey, 'grey')} made RGB"
    if transparent := int(is_transparent.sum()):
        yield f"{_images(transparent, 'transparent')} laid over white"
    if found.is_mapped:
        yield f"{_gigabytes(found.images.nbytes)}, streamed from {CACHE}/"


def _images(count: int, kind: str) -> str:
    return f"{count:,} {kind} image{'s' * (count > 1)}"


def _tensor(images: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # What is mapped is read-only; nothing writes into a data set's images.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


# --- kept or decoded ------------------------------------------------------------------------


def _read(
    root: Path, paths: list[str], keep: np.ndarray, size: tuple[int, int] | None, progress: bool
) -> Kept:
    """The images of the paths at `keep`."""
    whole = len(keep) == len(paths)
    wanted = [paths[i] for i in keep]
    # Before decoding: a file that changes meanwhile does not fit what is stored of it.
    own = kept.place(root, wanted, size, "all" if whole else str(len(keep)))
    found = kept.read(own, len(wanted))
    if found is None and not whole:
        every = kept.read(kept.place(root, paths, size, "all"), len(paths))
        found = None if every is None else _taken(every, keep, size)
    return found or _decode(own, wanted, size, progress)


def _taken(every: Kept, keep: np.ndarray, asked: tuple[int, int] | None) -> Kept | None:
    """Some of what is kept of all, as if these alone had been decoded; None where that would be
    of another size, or does not fit in memory."""
    facts = every.facts.at(keep)
    shape = _shape(facts, asked)
    if shape[1:3] != every.images.shape[1:3] or not memory.fits(math.prod(shape)):
        return None
    return Kept(np.ascontiguousarray(every.images[keep][..., : shape[3]]), facts)


def _shape(facts: Facts, asked: tuple[int, int] | None) -> tuple[int, int, int, int]:
    height, width = resized(facts.sizes, asked) or map(int, facts.sizes[0])
    return len(facts.sizes), height, width, 3 if facts.is_colour.any() else 1


def _decode(own: Path, paths: list[str], asked: tuple[int, int] | None, progress: bool) -> Kept:
    """All at once in memory and then kept, or kept part by part and mapped."""
    facts = _look(paths, progress)
    shape = _shape(facts, asked)
    parts = _parts(paths, shape, resized(facts.sizes, asked), facts, progress)
    if not memory.fits(math.prod(shape)):
        return _streamed(own, shape, parts, facts)
    images = np.empty(shape, dtype=np.uint8)
    begin = 0
    for part in parts:
        images[begin : begin + len(part)] = part
        begin += len(part)
    try:
        kept.store(own, shape, [images], facts)
    except (OSError, UserError) as error:
        print(
            f"cpfast: note: the decoded images are not kept for the next time: "
            f"{_reason(own, error)}",
            file=sys.stderr,
        )
    return Kept(images, facts)


def _streamed(own: Path, shape: tuple[int, ...], parts: Iterator[np.ndarray], facts: Facts) -> Kept:
    needed = math.prod(shape)
    try:
        if (room := shutil.disk_usage(own.parent.parent).free) < needed:
            raise OSError(0, f"only {_gigabytes(room)} are free")
        kept.store(own, shape, parts, facts)
    except OSError as error:
        raise UserError(
            f"the decoded images are {_gigabytes(needed)}, too much for the free memory, and "
            f"cannot be kept: {_reason(own, error)}; make room, or choose a smaller --image-size "
            "or --limit"
        ) from error
    found = kept.read(own, len(facts.sizes))
    if found is None:
        raise UserError(f"{own}: removed or changed while it was read")
    return found


def _reason(own: Path, error: OSError | UserError) -> str:
    return f"{own.parent}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"


# --- decoding -------------------------------------------------------------------------------


def _look(paths: list[str], progress: bool) -> Facts:
    """What the files' headers say; nothing is known to be transparent yet."""
    seen = [
        one
        for some in _in_threads(
            lambda part: [image_file.look(path) for path in part],
            paths, os.cpu_count() or 1, "looking", progress,
        )
        for one in some
    ]  # fmt: skip
    sizes = np.array([(one.height, one.width) for one in seen], dtype=np.int32)
    is_colour = np.array([one.is_colour for one in seen])
    return Facts(sizes, is_colour, np.zeros(len(seen), dtype=bool))


def _parts(
    paths: list[str],
    shape: tuple[int, ...],
    size: tuple[int, int] | None,
    facts: Facts,
    progress: bool,
) -> Iterator[np.ndarray]:
    """uint8 [up to `TOGETHER`, H, W, C] in their order; `facts` learns which are transparent."""

    def decode(part: list[str]) -> tuple[np.ndarray, list[bool]]:
        images = np.empty((len(part), *shape[1:]), dtype=np.uint8)
        transparent = []
        for image, path in zip(images, part, strict=True):
            pixels, is_transparent = image_file.read(path, size, shape[3])
            if pixels.shape != image.shape:
                raise UserError(f"{path}: changed while it was read")
            image[...] = pixels
            transparent.append(is_transparent)
        return images, transparent

    # Small images are decoded with the interpreter's lock changing hands all the time: on two
    # cores one of 32x32 takes 135 us on one thread and 195 us on six, one of 224x224 takes 350 us
    # on one thread, 190 us on two and 290 us on six.
    is_small = np.median(facts.sizes.prod(1)) <= SMALL
    threads = 1 if is_small else os.cpu_count() or 1
    begin = 0
    for images, transparent in _in_threads(decode, paths, threads, "decoding", progress):
        facts.is_transparent[begin : begin + len(images)] = transparent
        begin += len(images)
        yield images


def _in_threads(
    work: Callable[[list[str]], T], paths: list[str], threads: int, label: str, progress: bool
) -> Iterator[T]:
    """What `work` makes of each `TOGETHER` paths, in order; few are ahead of what is taken."""
    waiting: deque[Future[T]] = deque()

    def take() -> T:
        result = waiting.popleft().result()
        shown.update(TOGETHER)
        return result

    with (
        bar(label, progress, total=len(paths), unit="image") as shown,
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for begin in range(0, len(paths), TOGETHER):
                waiting.append(pool.submit(work, paths[begin : begin + TOGETHER]))
                if len(waiting) > threads + 1:
                    yield take()
            while waiting:
                yield take()
        finally:
            # without it the pool would first decode all that is queued
            pool.shutdown(wait=False, cancel_futures=True)
