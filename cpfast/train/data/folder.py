"""Image folders: train/<class>/<image> and test/<class>/<image>."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cpfast.train.data import decoded
from cpfast.train.data.decoded import Files
from cpfast.train.data.sets import ImageData
from cpfast.train.errors import UserError

LAYOUT = "train/<class>/<image> and test/<class>/<image>"


def holds(root: Path) -> bool:
    return (root / "train").is_dir()


def load(root: Path, limit: int | None, progress: bool) -> ImageData:
    """Classes are the folders of train/, in the order of their names.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    if not (root / "test").is_dir():
        raise UserError(f"{root}: no test/ beside train/; expected test/<class>/<image>")
    classes = class_names(root / "train")
    unknown = sorted(set(class_names(root / "test", least=1)) - set(classes))
    if unknown:
        raise UserError(f"{root / 'test'}: class {unknown[0]!r} is not in {root / 'train'}")
    train = list_classes(root / "train", classes)
    test = list_classes(root / "test", classes, complete=False)
    if not test.paths:
        raise UserError(f"{root / 'test'}: no images in the class folders")
    return decoded.load(root, train, test, classes, limit, progress)


def class_names(split: Path, least: int = 2) -> tuple[str, ...]:
    """Names of the class folders in `split`, sorted."""
    names = sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{split}: no class folders; expected {split.name}/<class>/<image>")
    if len(names) < least:
        raise UserError(f"{split}: only one class, {names[0]!r}; two at least are needed")
    return tuple(names)


def list_classes(
    split: Path, classes: tuple[str, ...], *, inner: str = "", complete: bool = True
) -> Files:
    """The images in split/<class>/`inner`; every class has some if `complete`."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = split / name / inner
        files = decoded.list_images(folder) if folder.is_dir() else []
        if not files and complete:
            raise UserError(f"{folder}: no images ({', '.join(decoded.SUFFIXES)})")
        paths += files
        labels += [label] * len(files)
    return Files(paths, np.array(labels, dtype=np.int64))
