"""Image folders: train/<class>/<image> and test/<class>/<image>, or val/ and its other names."""

from __future__ import annotations

from pathlib import Path

from cpfast.train.data import Layout, decoded, layouts
from cpfast.train.data.listing import class_names, folders, list_classes
from cpfast.train.data.mirroring import have_sides
from cpfast.train.data.sets import ImageData
from cpfast.train.errors import UserError

TESTED = ("test", "val", "valid", "validation")  # the first that is there


def holds(root: Path) -> bool:
    return (root / "train").is_dir()


def load(
    root: Path, limit: int | None, progress: bool, image_size: tuple[int, int] | None = None
) -> ImageData:
    """Classes are the folders of train/, in the order of their names.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    found = [name for name in TESTED if (root / name).is_dir()]
    if not found:
        raise UserError(
            f"{root}: no test/, val/, valid/ or validation/ beside train/; "
            "expected test/<class>/<image>"
        )
    train_root, test_root = root / "train", root / found[0]
    classes = class_names(train_root)
    unknown = sorted(set(class_names(test_root, least=1)) - set(classes))
    if unknown:
        raise UserError(f"{test_root}: class {unknown[0]!r} is not in {train_root}")
    train = list_classes(train_root, classes)
    test = list_classes(test_root, classes, complete=False)
    if not test.paths:
        raise UserError(f"{test_root}: no images in the class folders")
    note = "" if found == ["test"] else f"tested on {', not '.join(f'{name}/' for name in found)}"
    return decoded.load(root, train, test, classes, limit, progress, note, image_size)


def _has_sides(root: Path) -> bool:
    return have_sides(folder.name for folder in folders(root / "train"))


@layouts.register(
    "folder",
    source="torchvision's ImageFolder",
    line="train/<class>/<image> and test/<class>/<image>",
)
def layout() -> Layout:
    return Layout(load, holds, order=1, has_sides=_has_sides, takes=("image_size",))
