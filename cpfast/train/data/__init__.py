"""Data sets in memory, by name or by path: one module for each kind of source."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpfast.registry import Registry
from cpfast.train import own
from cpfast.train.data.kinds import KINDS, Kind
from cpfast.train.data.listing import folders, is_image
from cpfast.train.data.mirroring import have_sides
from cpfast.train.data.sets import Data, FloatData, ImageData, TextData
from cpfast.train.data.split import limited_test, stratified
from cpfast.train.errors import UserError

__all__ = [
    "KINDS", "Data", "DataSet", "FloatData", "ImageData", "Kind", "Layout", "TextData", "datasets",
    "is_mirrored", "is_place", "kind_of", "layouts", "load", "parse_size", "read_folder", "resizes",
    "side", "stratified",
]  # fmt: skip

# The networks halve it twice, and normalising a batch of one needs more than one pixel.
SMALLEST = 8
LARGEST = 4096  # that a photograph is resized to
LAST = 2


@dataclass(frozen=True)
class DataSet:
    """Data that has a name.

    Attributes:
        load: from the limit, whether to show bars, and whether it may be fetched.
        reads: of `KINDS`.
        is_published: fetched from an address, with --download.
        defaults: settings of a run on it, where they are not the common ones.
    """

    load: Callable[[int | None, bool, bool], Data]
    reads: str = "images"
    is_published: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _never(path: Path) -> bool:
    return False


def _images(path: Path) -> str:
    return "images"


@dataclass(frozen=True)
class Layout:
    """How data lies in a folder or a file that is given by its path.

    Attributes:
        load: from the path, the limit, whether to show bars, and by their names those of the
            options that it `takes`, each None where it is not given.
        holds: whether a folder is of this layout.
        is_file: whether a file is.
        order: the layouts are tried by it, those of one by name. Those of `LAST` are tried once
            no other is found: they fit what others fit better.
        has_sides: whether a mirrored image of what lies there may be of another class.
        takes: "image_size", height and width, where images may be of any sizes; "label", the name
            of a column.
        reads: what kind of data lies there, of `KINDS`.
    """

    load: Callable[..., Data]
    holds: Callable[[Path], bool] = _never
    is_file: Callable[[Path], bool] = _never
    order: int = 0
    has_sides: Callable[[Path], bool] = _never
    takes: tuple[str, ...] = ()
    reads: Callable[[Path], str] = _images


# Modules of this package register here, and are imported when one of these is first asked.
datasets: Registry[DataSet] = Registry("data set", "cpfast.train.data", "cpfast.datasets")
layouts: Registry[Layout] = Registry("layout", "cpfast.train.data", "cpfast.layouts")


def kind_of(source: str) -> str | None:
    """What kind of data a name or a path stands for, of `KINDS`; None where nothing is there."""
    if source in datasets:
        return datasets.make(source).reads
    if own.is_own(source):
        return _own_data().load(source).reads
    found = _at(Path(source))
    return found[0][0].reads(found[0][1]) if len(found) == 1 else None


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of --image-size: "64", or "48x64".

    Raises:
        UserError: it is neither, or out of range.
    """
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(side.isascii() and side.isdigit() for side in sides):
        height, width = int(sides[0]), int(sides[-1])
        if min(height, width) >= SMALLEST and max(height, width) <= LARGEST:
            return height, width
    raise UserError(
        f"--image-size must be a side or HEIGHTxWIDTH, of {SMALLEST} to {LARGEST} pixels, as 64 or "
        f"48x64; got {text!r}"
    )


def is_place(source: str) -> bool:
    """Whether it is to be a path: neither a name nor a function."""
    return source not in datasets and not own.is_own(source)


def is_mirrored(source: str | Path) -> bool:
    """Whether the images at a path, or those of a function, are mirrored where nobody says whether
    they should be: not those of digits and letters, nor where a class is a left or a right."""
    if own.is_own(str(source)):
        data = _own_data().load(str(source))
        return isinstance(data, ImageData) and not have_sides(data.classes)
    return not any(layout.has_sides(place) for layout, place in _at(Path(source)))


def _own_data() -> Any:
    # it imports this module
    return importlib.import_module("cpfast.train.data.own_data")


def load(
    source: str,
    limit: int | None = None,
    progress: bool = False,
    download: bool = False,
    limit_test: int | None = None,
    **options: Any,
) -> Data:
    """Load a data set by name or path.

    Args:
        source: one of `datasets`, the path of a folder or file, or `module:function`, see
            `own_data`.
        limit: how many training samples to keep, those with labels stratified; None for all.
        progress: show bars where stderr is a terminal.
        download: fetch a published data set that is not there yet.
        limit_test: how many test samples to keep, chosen as the others are.
        options: that layouts take, see `Layout`; None: not given.

    Raises:
        UserError: naming the path and what is wrong with it.
    """
    named = {name: entry.make() for name, entry in datasets.items()}
    published = [name for name, dataset in named.items() if dataset.is_published]
    if download and source not in published:
        raise UserError(f"--download goes with --data {', '.join(published)}; got {source}")
    if source in named:
        _check_taken(options, (), f"--data {source}")
        data = named[source].load(limit, progress, download)
    elif own.is_own(source):
        _check_taken(options, (), f"--data {source}")
        data = _own_data().load(source, limit)
    else:
        data = _load_path(source, limit, progress, options)
    if limit_test is not None:
        data = limited_test(data, limit_test)
    if not isinstance(data, ImageData):
        return data
    height, width, _ = data.shape
    if min(height, width) < SMALLEST:
        raise UserError(
            f"--data {source}: images of {height}x{width} are too small, "
            f"{SMALLEST}x{SMALLEST} at least"
        )
    return data


def side(data: Data) -> int | None:
    """Of images, the pixels of the shorter side; None of other data."""
    return min(data.shape[:2]) if isinstance(data, ImageData) else None


def read_folder(path: Path, limit: int | None, progress: bool, **options: Any) -> Data:
    """Of whichever layout; the data may also lie in the only folder in it that holds some.

    Raises:
        UserError: naming the path and what is wrong with it.
    """
    held = _held(path)
    if len(held) == 1:
        layout, place = held[0]
        return _loaded(layout, place, limit, progress, options)
    loose = sum(is_image(file.name) for file in path.iterdir()) if not held else 0
    if loose:
        raise UserError(
            f"{path}: {loose:,} image{'s' * (loose > 1)} in no class folder; move those of each "
            f"class into a folder of its own, {path.name}/<class>/<image>"
        )
    several = f"several folders with data: {held[0][1].name}, {held[1][1].name}" if held else "none"
    # The general ones first: they are what most people have.
    lines = [
        layouts[name].line
        for name, layout in sorted(_ordered(), key=lambda item: item[1].order == 0)
        if layout.holds is not _never
    ]
    raise UserError(f"{path}: no train/ folder ({several}); expected {'; or '.join(lines)}")


def resizes(source: str) -> bool:
    """Whether the images of a data set may be of any sizes, and are resized."""
    path = Path(source).expanduser()
    is_folder = source not in datasets and path.is_dir()
    return is_folder and any("image_size" in layout.takes for layout, _ in _held(path))


def _held(path: Path) -> list[tuple[Layout, Path]]:
    """The data in a folder, or in the folders in it where it holds none itself."""
    inside = folders(path)
    held: list[tuple[Layout, Path]] = []
    for is_last in (False, True):
        tried = [layout for _, layout in _ordered() if (layout.order >= LAST) == is_last]
        for places in ([path], inside):
            if len(held) == 0:
                found = (next((k for k in tried if k.holds(p)), None) for p in places)
                held = [(k, p) for k, p in zip(found, places, strict=True) if k is not None]
    return held


def _at(path: Path) -> list[tuple[Layout, Path]]:
    """The data at a path, by their layouts."""
    if path.is_file():
        return [(next(layout for _, layout in _ordered() if layout.is_file(path)), path)]
    return _held(path) if path.is_dir() else []


_GO_WITH = {"image_size": "a folder of images", "label": "a table"}


def _check_taken(options: Mapping[str, Any], taken: tuple[str, ...], source: str) -> None:
    for name, value in options.items():
        if value is not None and name not in taken:
            option = name.replace("_", "-")
            raise UserError(f"--{option} goes with {_GO_WITH[name]}; got {source}")


def _loaded(
    layout: Layout, place: Path, limit: int | None, progress: bool, options: Mapping[str, Any]
) -> Data:
    _check_taken(options, layout.takes, str(place))
    given = {name: options.get(name) for name in layout.takes}
    return layout.load(place, limit, progress, **given)


def _load_path(source: str, limit: int | None, progress: bool, options: Mapping[str, Any]) -> Data:
    path = Path(source).expanduser()
    if path.is_dir():
        return read_folder(path, limit, progress, **options)
    if path.is_file():
        layout = _at(path)[0][0]
        return _loaded(layout, path, limit, progress, options)
    raise UserError(
        f"--data {source}: no such folder or file (expected a folder of images or text, a table, "
        f"or an .npz file; or one of {', '.join(datasets)}; or CIFAR's or MNIST's files)"
    )


def _ordered() -> list[tuple[str, Layout]]:
    found = [(name, entry.make()) for name, entry in layouts.items()]
    return sorted(found, key=lambda item: item[1].order)
