"""Data that a function of the user's own returns: `--data module:function`.

It is called without arguments and returns one of

- `(train, test)`, map-style datasets (`__len__`, `__getitem__`) of (input, label);
- `(x_train, y_train, x_test, y_test)`, arrays or tensors;
- `(train, test)`, two strings: text.

Inputs are images, uint8 [H, W], [H, W, C] or [C, H, W], or Pillow's; numbers, [F], of a table; or
float [C, T], a time series. All are of one shape, and are read once: what a dataset draws at random
is drawn once. Labels are whole numbers from 0; names of the classes come from `train.classes`.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpfast.train import own
from cpfast.train.data import characters, npz
from cpfast.train.data.arrays import labelled
from cpfast.train.data.sets import Data, ImageData, TextData
from cpfast.train.data.split import limited, some
from cpfast.train.errors import UserError

RETURNS = "two datasets of (input, label), or x_train, y_train, x_test, y_test, or two texts"


def load(source: str, limit: int | None = None) -> Data:
    """
    Raises:
        UserError: the function cannot be imported, fails, or returns something else.
    """
    data = _converted(source)
    if limit is None:
        return data
    if isinstance(data, TextData):
        return dataclasses.replace(
            data, train_tokens=data.train_tokens[some(data.train_size, limit)]
        )
    chosen = limited(data.train_labels.numpy(), limit)
    names = [name for name in vars(data) if name.startswith("train_")]
    changes: Any = {name: getattr(data, name)[chosen] for name in names}
    return dataclasses.replace(data, **changes)


@functools.lru_cache(maxsize=1)  # asked for what it holds before it is asked for the data
def _converted(source: str) -> Data:
    made = own.call("--data", source)
    where, name = f"--data {source}", source.partition(":")[2]
    if not isinstance(made, (tuple, list)) or len(made) not in (2, 4):
        raise UserError(f"{where}: it returns a {_kind(made)}; expected {RETURNS}")
    if all(isinstance(part, str) for part in made) and len(made) == 2:
        return characters.text_data(where, *made, name=name)
    classes = getattr(made[0], "classes", None)
    if len(made) == 2:
        made = (*_read(where, "train", made[0]), *_read(where, "test", made[1]))
    x_train, y_train, x_test, y_test = map(_array, made)
    return _of_arrays(where, name, classes, (x_train, y_train), (x_test, y_test))


def _of_arrays(
    where: str,
    name: str,
    classes: Any,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> Data:
    path = Path(where)  # for messages
    headers = [npz.Header(part.shape, part.dtype) for part in (train[0], test[0])]
    if headers[0].dtype.kind == "f" and len(headers[0].shape) == 4:
        raise UserError(
            f"{where}: images of {headers[0].dtype}; expected uint8, 0 to 255: leave out ToTensor "
            "and Normalize, which the training does"
        )
    if headers[0].shape[1:] != headers[1].shape[1:]:
        shapes = [list(header.shape[1:]) for header in headers]
        raise UserError(f"{where}: training inputs of {shapes[0]}, test inputs of {shapes[1]}")
    labels = []
    for which, (inputs, given) in (("train", train), ("test", test)):
        count = inputs.shape[0] if inputs.ndim else 0
        npz.check_labels(
            path, f"the labels of {which}", npz.Header(given.shape, given.dtype), count
        )
        if count == 0:
            raise UserError(f"{where}: no {which} samples")
        labels.append(npz.whole_labels(path, f"the labels of {which}", given))
    count = npz.count_classes(path, "train", labels[0], "test", labels[1])
    names = tuple(map(str, classes)) if classes is not None else ()
    if len(names) != count:
        names = tuple(str(label) for label in range(count))
    if npz.is_numbers(headers[0]):
        return labelled(where, train[0], labels[0], names, test=(test[0], labels[1]), name=name)
    for which, header in zip(("the inputs of train", "those of test"), headers, strict=True):
        npz.size_of(path, which, header)
    images = [
        torch.from_numpy(np.ascontiguousarray(npz.channels_last(part)))
        for part in (train[0], test[0])
    ]
    own_labels = [torch.from_numpy(part) for part in labels]
    return ImageData(images[0], own_labels[0], images[1], own_labels[1], names, name)


def _read(where: str, name: str, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UserError(f"{where}: {name} is a {_kind(dataset)}; expected {RETURNS}")
    inputs, labels = [], []
    for place in range(len(dataset)):
        sample = dataset[place]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise UserError(f"{where}: {name}[{place}] is a {_kind(sample)}, not (input, label)")
        inputs.append(_array(sample[0]))
        labels.append(_array(sample[1]))
        if inputs[-1].shape != inputs[0].shape or inputs[-1].dtype != inputs[0].dtype:
            first, this = (f"{one.dtype} {list(one.shape)}" for one in (inputs[0], inputs[-1]))
            raise UserError(f"{where}: {name}[0] is {first}, {name}[{place}] {this}; all are to be "
                            "of one shape")  # fmt: skip
    if not inputs:
        raise UserError(f"{where}: no {name} samples")
    return np.stack(inputs), np.stack(labels)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)


def _kind(value: Any) -> str:
    return type(value).__name__ + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
