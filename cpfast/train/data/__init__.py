"""Data sets in memory, by name or by path: one module for each kind of source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cpfast.train.config import DOWNLOADS, TEXTS
from cpfast.train.data import (
    cifar,
    class_folders,
    digits,
    folder,
    idx,
    npz,
    text,
    tiny_imagenet,
)
from cpfast.train.data.download import locate
from cpfast.train.data.listing import folders
from cpfast.train.data.sets import ImageData, TextData
from cpfast.train.data.split import stratified
from cpfast.train.errors import UserError

__all__ = ["ImageData", "TextData", "load", "stratified"]

# The networks halve it twice, and normalising a batch of one needs more than one pixel.
SMALLEST = 8


class Layout(Protocol):
    """A module that reads what lies in a folder."""

    LAYOUT: str  # for messages

    def holds(self, root: Path) -> bool: ...
    def load(self, root: Path, limit: int | None, progress: bool) -> ImageData: ...


# Class folders are looked for last: many folders hold folders with images.
LAYOUTS: tuple[Layout, ...] = (cifar, idx, tiny_imagenet, folder, class_folders)


def load(
    source: str, limit: int | None = None, progress: bool = False, download: bool = False
) -> ImageData | TextData:
    """Load a data set by name or path.

    Args:
        source: "digits", "python-docs", one of `DOWNLOADS`, or the path of a folder or file.
        limit: how many training images, stratified, or training sequences to keep; None for all.
        progress: show bars where stderr is a terminal.
        download: fetch a data set of `DOWNLOADS` that is not there yet.

    Raises:
        UserError: naming the path and what is wrong with it.
    """
    if download and source not in DOWNLOADS:
        raise UserError(f"--download goes with --data {', '.join(DOWNLOADS)}; got {source}")
    if source in TEXTS:
        return text.load(limit)
    data = digits.load(limit) if source == "digits" else _load(source, limit, progress, download)
    height, width, _ = data.shape
    if min(height, width) < SMALLEST:
        raise UserError(
            f"--data {source}: images of {height}x{width} are too small, "
            f"{SMALLEST}x{SMALLEST} at least"
        )
    return data


def _load(source: str, limit: int | None, progress: bool, download: bool) -> ImageData:
    if source in DOWNLOADS:
        layout, path = _recognise(locate(source, download, progress))
        return replace(layout.load(path, limit, progress), name=source)
    path = Path(source).expanduser()
    if path.is_dir():
        layout, path = _recognise(path)
        return layout.load(path, limit, progress)
    if path.is_file():
        return idx.load(path, limit, progress) if idx.is_idx(path) else npz.load(path, limit)
    raise UserError(
        f"--data {source}: no such folder or file (expected 'digits', an image folder, or an .npz "
        f"file; or one of {', '.join((*TEXTS, *DOWNLOADS))}; or CIFAR's or MNIST's files)"
    )


def _recognise(path: Path) -> tuple[Layout, Path]:
    """What lies in `path`, or in the only folder in it that holds data; and where."""
    inside = folders(path)
    held: list[tuple[Layout, Path]] = []
    for layouts in (LAYOUTS[:-1], LAYOUTS[-1:]):
        for places in ([path], inside):
            if len(held) == 0:
                kinds = (next((k for k in layouts if k.holds(p)), None) for p in places)
                held = [(k, p) for k, p in zip(kinds, places, strict=True) if k is not None]
    if len(held) == 1:
        return held[0]
    found = f"several folders with data: {held[0][1].name}, {held[1][1].name}" if held else "none"
    expected = "; or ".join(layout.LAYOUT for layout in (folder, class_folders, *LAYOUTS[:3]))
    raise UserError(f"{path}: no train/ folder ({found}); expected {expected}")
