"""Hugging Face `datasets` that `save_to_disk` has written: images, text, or a table.

What is there is told by the columns: one of images makes images; without one, a text of any length
makes text, whose labels are not used; numbers and categories make a table. Nothing is fetched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpfast.train.data import Layout, characters, columns, image_file, layouts
from cpfast.train.data.arrays import split as split_of
from cpfast.train.data.decoded import resized
from cpfast.train.data.sets import Data, ImageData, TextData
from cpfast.train.data.split import HELD_OUT_NOTE, limited
from cpfast.train.errors import MissingLibrary, UserError, first_line, require

TESTS = ("test", "validation", "valid", "val", "dev")
TEXTS = ("text", "content", "sentence", "document", "code")
SPLITS, INFO, STATE = "dataset_dict.json", "dataset_info.json", "state.json"


def holds(path: Path) -> bool:
    return (path / SPLITS).is_file() or all((path / file).is_file() for file in (INFO, STATE))


def reads(path: Path) -> str:
    """Of a folder that cannot be read, images: loading it says what is wrong."""
    try:
        if (path / SPLITS).is_file():
            path /= json.loads((path / SPLITS).read_text(encoding="utf-8"))["splits"][0]
        features = json.loads((path / INFO).read_text(encoding="utf-8"))["features"]
        return _kind({name: dict(feature) for name, feature in features.items()})
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        return "images"


def _kind(features: dict[str, dict[str, Any]]) -> str:
    if any(feature.get("_type") == "Image" for feature in features.values()):
        return "images"
    return "text" if _text_column(features) else "table"


def _text_column(features: dict[str, dict[str, Any]]) -> str | None:
    """One of `TEXTS`, or the only column."""
    texts = [n for n, f in features.items() if f.get("dtype") in ("string", "large_string")]
    named = [name for name in TEXTS if name in texts]
    return named[0] if named else texts[0] if len(features) == 1 and texts else None


def load(
    path: Path,
    limit: int | None,
    progress: bool,
    *,
    image_size: tuple[int, int] | None,
    label: str | None,
) -> Data:
    """The splits train and test (or validation); without the latter a fifth of each class is held
    out, of text a tenth.

    Raises:
        UserError: naming the folder, and the column, and what is wrong with it.
    """
    train, test = _splits(path)
    features = {name: _described(feature) for name, feature in train.features.items()}
    kind = _kind(features)
    for option, value, fits in (("image-size", image_size, "images"), ("label", label, "table")):
        if value is not None and kind != fits and not (option == "label" and kind == "images"):
            raise UserError(f"--{option} does not go with {path}, which holds {kind}")
    if kind == "images":
        return _images(path, train, test, features, limit, image_size, label)
    if kind == "text":
        column = _text_column(features)
        assert column is not None
        return _text(path, train, test, column, limit)
    return _table(path, train, test, label, limit)


def _described(feature: Any) -> dict[str, Any]:
    """As dataset_info.json has it."""
    own = {"dtype": getattr(feature, "dtype", None), "names": getattr(feature, "names", None)}
    return {**own, "_type": type(feature).__name__}


def _splits(path: Path) -> tuple[Any, Any | None]:
    try:
        library = require("datasets", f"--data {path}")
    except MissingLibrary as error:
        raise MissingLibrary(
            f"--data {path}: saved by Hugging Face's datasets, which reads it; pip install datasets"
        ) from error
    try:
        found = library.load_from_disk(str(path))
    # pyarrow and datasets have many for damage
    except Exception as error:
        raise UserError(f"{path}: datasets cannot read it ({first_line(error)})") from error
    if not isinstance(found, dict):
        return found, None
    if "train" not in found:
        raise UserError(f"{path}: no split train, only {', '.join(found)}")
    return found["train"], next((found[name] for name in TESTS if name in found), None)


# --- images -----------------------------------------------------------------------------------


def _images(
    path: Path,
    train: Any,
    test: Any | None,
    features: dict[str, dict[str, Any]],
    limit: int | None,
    size: tuple[int, int] | None,
    label: str | None,
) -> ImageData:
    column = next(name for name, feature in features.items() if feature["_type"] == "Image")
    label = label or _label(path, features)
    if label not in features:
        raise UserError(f"--label {label}: {path} has no such column; {', '.join(features)}")
    names = features[label].get("names")
    values = train[label][:]
    classes = list(names) if names else sorted({str(value) for value in values})
    labels = _numbered(path, label, values, names, classes)
    encoded = _Encoded(train, column)
    notes = []
    if test is None:
        held = split_of(str(path), labels, classes)
        notes.append(HELD_OUT_NOTE)
        parts = [(np.flatnonzero(~held), encoded, labels), (np.flatnonzero(held), encoded, labels)]
    else:
        other = _numbered(path, label, test[label][:], names, classes)
        parts = [(np.arange(len(labels)), encoded, labels),
                 (np.arange(len(other)), _Encoded(test, column), other)]  # fmt: skip
    chosen = parts[0][0]
    parts[0] = (chosen[limited(labels[chosen], limit)], encoded, labels)
    files = [(f"{path}, image {place}", images[int(place)]) for index, images, _ in parts
             for place in index]  # fmt: skip
    seen = [image_file.look(*file) for file in files]
    sizes = np.array([[one.height, one.width] for one in seen])
    own = resized(sizes, size)
    if own is not None and (sizes != own).any():
        notes.append(f"resized and cropped to {own[0]}x{own[1]}")
    channels = 3 if any(one.is_colour for one in seen) else 1
    pixels = np.stack([image_file.read(name, own, channels, data)[0] for name, data in files])
    count = len(parts[0][0])
    tensors = [torch.from_numpy(part) for part in (pixels[:count], pixels[count:])]
    ys = [torch.from_numpy(own_labels[index]) for index, _, own_labels in parts]
    return ImageData(
        tensors[0], ys[0], tensors[1], ys[1], tuple(classes), path.name, "; ".join(notes), own
    )


def _label(path: Path, features: dict[str, dict[str, Any]]) -> str:
    found = [name for name, feature in features.items() if feature["_type"] == "ClassLabel"]
    found += [name for name in columns.LABELS if name in features and name not in found]
    if not found:
        raise UserError(f"{path}: no column of classes; --label COLUMN, of {', '.join(features)}")
    return found[0]


def _numbered(
    path: Path, label: str, values: Any, names: list[str] | None, classes: list[str]
) -> np.ndarray:
    """int64 [N]: ClassLabel's numbers, or the places of names."""
    places = {name: place for place, name in enumerate(classes)}
    if any(value is None or (names and value < 0) for value in values):
        raise UserError(f"{path}: a sample without {label!r}")
    try:
        found = [value if names else places[str(value)] for value in values]
    except KeyError as error:
        raise UserError(f"{path}: class {error} is in the test split alone") from error
    return np.array(found, dtype=np.int64)


class _Encoded:
    """The bytes of each image, as they are in its file."""

    def __init__(self, split: Any, column: str) -> None:
        library = require("datasets", "reading images")
        self._split = split.cast_column(column, library.Image(decode=False))
        self._column = column

    def __getitem__(self, place: int) -> bytes:
        image = self._split[place][self._column]
        if image is not None and image["bytes"] is not None:
            return image["bytes"]
        try:
            return Path(image["path"]).read_bytes()
        except (OSError, TypeError) as error:
            raise UserError(f"image {place}: not in the saved data, nor beside it") from error


# --- text, tables -----------------------------------------------------------------------------


def _text(path: Path, train: Any, test: Any | None, column: str, limit: int | None) -> TextData:
    documents = [text for text in train[column][:] if text]
    notes = [f"text of column {column!r}"]
    if test is not None:
        held = [text for text in test[column][:] if text]
    else:
        count = max(1, len(documents) // 10)
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(documents))
        chosen = set(order[:count].tolist())
        held = [documents[place] for place in sorted(chosen)]
        documents = [text for place, text in enumerate(documents) if place not in chosen]
        notes.append("a tenth of the documents is held out for testing")
    return characters.text_data(
        str(path), "\n".join(documents), "\n".join(held), limit=limit, name=path.name, notes=notes
    )


def _table(path: Path, train: Any, test: Any | None, label: str | None, limit: int | None) -> Data:
    def frame(split: Any) -> Any:
        made = split.to_pandas()
        for name, feature in split.features.items():
            if names := getattr(feature, "names", None):
                made[name] = made[name].map(dict(enumerate(names)))
        return made

    labels = [n for n, f in train.features.items() if type(f).__name__ == "ClassLabel"]
    if label is None and len(labels) == 1:
        label = labels[0]
    other = None if test is None else frame(test)
    return columns.encode(
        str(path), frame(train), other, label=label, last=False, limit=limit, name=path.name
    )


@layouts.register("datasets", source="huggingface/datasets", line="datasets' save_to_disk")
def layout() -> Layout:
    return Layout(load, holds, takes=("image_size", "label"), reads=reads)
