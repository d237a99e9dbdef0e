"""A folder of class folders without a split, as EuroSAT is published: 2750/<class>/<image>.

EuroSAT: Helber et al. 2019 (1709.00029); 2750/ is the top folder of EuroSAT.zip, EuroSAT_RGB/
that of the archive at Zenodo (record 7711810).
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import compress
from pathlib import Path

import numpy as np

from cpfast.train.data import LAST, Layout, decoded, layouts
from cpfast.train.data.listing import Files, class_names, folders, is_image, list_classes
from cpfast.train.data.mirroring import have_sides
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import HELD_OUT_NOTE, held_out
from cpfast.train.errors import UserError


def holds(root: Path) -> bool:
    """Whether a folder in `root` directly holds images."""
    for folder in folders(root):
        with os.scandir(folder) as files:
            if any(is_image(file.name) for file in files):
                return True
    return False


def load(
    root: Path, limit: int | None, progress: bool, image_size: tuple[int, int] | None = None
) -> ImageData:
    """Classes are the folders, in the order of their names; see `HELD_OUT_NOTE` for the split.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    classes = class_names(root)
    paths, labels, others = list_classes(root, classes)
    sizes = np.bincount(labels)
    if sizes.min() < 2:
        raise UserError(
            f"{root / classes[int(sizes.argmin())]}: only one image; two at least are needed, "
            "one of them for testing"
        )
    held = held_out(labels)
    train, test = (
        Files(list(compress(paths, part)), labels[part], more)
        for part, more in ((~held, others), (held, Counter()))
    )
    return decoded.load(root, train, test, classes, limit, progress, HELD_OUT_NOTE, image_size)


def _has_sides(root: Path) -> bool:
    return have_sides(folder.name for folder in folders(root))


@layouts.register("class-folders", source="arXiv 1709.00029", line="<class>/<image>")
def layout() -> Layout:
    return Layout(load, holds, order=LAST, has_sides=_has_sides, takes=("image_size",))
