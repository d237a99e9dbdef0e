"""Tiny-ImageNet as it is published (cs231n.stanford.edu/tiny-imagenet-200.zip).

train/<wnid>/images/*.JPEG and val/images/*.JPEG with val/val_annotations.txt, tab-separated: file,
wnid, bounding box. The labels of its test/ were never published: val/ is the test set here.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from cpfast.train.data import Layout, decoded, layouts
from cpfast.train.data.listing import Files, class_names, list_classes, list_images
from cpfast.train.data.sets import ImageData
from cpfast.train.errors import UserError


def holds(root: Path) -> bool:
    parts = ("val_annotations.txt", "images")
    return (root / "train").is_dir() and any((root / "val" / part).exists() for part in parts)


def load(
    root: Path, limit: int | None, progress: bool, image_size: tuple[int, int] | None = None
) -> ImageData:
    """Classes are the folders of train/, in the order of their names (of wnids.txt, sorted).

    Raises:
        UserError: naming the folder, file or line and what is wrong with it.
    """
    classes = class_names(root / "train")
    train = list_classes(root / "train", classes, inner="images")
    test = _validation(root / "val", classes)
    return decoded.load(root, train, test, classes, limit, progress, "tested on val/", image_size)


def _validation(folder: Path, classes: tuple[str, ...]) -> Files:
    annotations = folder / "val_annotations.txt"
    if not annotations.is_file():
        raise UserError(
            f"{annotations}: no such file; the classes of {folder / 'images'} are in it"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    labels: dict[str, int] = {}
    lines = annotations.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in label_of:
            raise UserError(
                f"{annotations}, line {number}: expected a file, a tab and a class of train/, "
                f"got {line!r}"
            )
        labels[fields[0]] = label_of[fields[1]]
    images = folder / "images"
    others: Counter[str] = Counter()
    listed = list_images(images, others, {}) if images.is_dir() else []
    paths = {os.path.relpath(path, images): path for path in listed}
    for name in labels.keys() ^ paths.keys():
        if name in paths:
            raise UserError(f"{paths[name]}: no class in {annotations}")
        raise UserError(f"{annotations}: {name} is not in {images}")
    if not paths:
        raise UserError(f"{images}: no images")
    return Files(listed, np.array([labels[name] for name in paths], dtype=np.int64), others)


@layouts.register(
    "tiny-imagenet",
    source="Le and Yang 2015",
    line="Tiny-ImageNet's train/<wnid>/images/ and val/val_annotations.txt",
)
def layout() -> Layout:
    return Layout(load, holds, takes=("image_size",))
