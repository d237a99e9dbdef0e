"""Which files are the images of a class: <split>/<class>/<image>, or deeper in the class's folder.

Hidden files and folders, and what archives and desktops leave behind, count as not there. Other
files that are no images are counted, so that it can be said.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from cpfast.train.errors import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff",
    ".webp", ".heic", ".heif",
)  # fmt: skip
LEFT_BEHIND = ("__macosx", "thumbs.db", "desktop.ini")
SHOWN = 6  # suffixes


class Files(NamedTuple):
    """Image files, their labels, int64 [N], and how many others lie beside them, by suffix."""

    paths: list[str]
    labels: np.ndarray
    others: Counter[str]


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def folders(root: Path) -> list[Path]:
    """Those in `root`, sorted by name."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))


def class_names(split: Path, least: int = 2) -> tuple[str, ...]:
    """Names of the class folders in `split`, sorted."""
    names = tuple(folder.name for folder in folders(split))
    if not names:
        raise UserError(f"{split}: no class folders; expected {split.name}/<class>/<image>")
    if len(names) < least:
        raise UserError(f"{split}: only one class, {names[0]!r}; two at least are needed")
    return names


def list_classes(
    split: Path, classes: tuple[str, ...], *, inner: str = "", complete: bool = True
) -> Files:
    """The images in split/<class>/`inner` at any depth; every class has some if `complete`."""
    with os.scandir(split) as entries:
        others = Counter(
            _suffix(entry.name)
            for entry in entries
            if not entry.is_dir() and not is_hidden(entry.name)
        )
    whole = split.resolve()
    places = {str(place): str(place) for place in (whole, *whole.parents)}
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = split / name / inner
        files = list_images(folder, others, places) if folder.is_dir() else []
        if not files and complete:
            raise UserError(f"{folder}: no images ({', '.join(SUFFIXES)})")
        paths += files
        labels += [label] * len(files)
    return Files(paths, np.array(labels, dtype=np.int64), others)


def list_images(folder: Path, others: Counter[str], places: dict[str, str]) -> list[str]:
    """Paths of the images in `folder` at any depth, sorted; other files are counted in `others`.

    Links are followed, to each folder once. `places` holds the real paths of the folders of other
    classes, as they were reached, and gets those of this one.
    """
    paths: list[str] = []
    own: set[str] = set()
    for place, inner, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in own:
            inner.clear()
            continue
        if places.setdefault(real, place) != place:
            raise UserError(
                f"{place} and {places[real]} are one folder, which cannot be of two classes"
            )
        own.add(real)
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        for name in files:
            if is_image(name):
                paths.append(os.path.join(place, name))
            elif not is_hidden(name):
                others[_suffix(name)] += 1
    return sorted(paths)


def passed_over(others: Counter[str]) -> str:
    """For a note; empty if there are none."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{suffix} {count:,}" for suffix, count in ranked[:SHOWN]]
    kinds += ["..."] * (len(ranked) > SHOWN)
    count = others.total()
    return f"{count:,} file{'s' * (count > 1)} passed over ({', '.join(kinds)})" if count else ""


def _suffix(name: str) -> str:
    """In lower case; "others" without one, and for what cannot be shown in a line."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix.isascii() and suffix[1:].isalnum() and len(suffix) < 9 else "others"


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: {error.strerror}") from error
