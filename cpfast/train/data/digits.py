"""scikit-learn's digits: the data set that installs with the package."""

from __future__ import annotations

import numpy as np
import torch

from cpfast.train.data import DataSet, datasets
from cpfast.train.data.sets import ImageData
from cpfast.train.data.split import limited, stratified
from cpfast.train.errors import require

TRAIN = 256


def load(limit: int | None) -> ImageData:
    """1,797 images of 8x8x1; `TRAIN` of them, stratified, are for training."""
    sklearn_datasets = require("sklearn.datasets", "--data digits")
    bunch = sklearn_datasets.load_digits()
    # 0 .. 16 to 0 .. 255
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train = stratified(labels, TRAIN)
    test = np.setdiff1d(np.arange(len(labels)), train)
    train = train[limited(labels[train], limit)]
    return ImageData(
        torch.from_numpy(images[train]),
        torch.from_numpy(labels[train]),
        torch.from_numpy(images[test]),
        torch.from_numpy(labels[test]),
        tuple(str(digit) for digit in range(10)),
        "digits",
    )


@datasets.register("digits", source="scikit-learn's load_digits")
def digits() -> DataSet:
    """1,797 digits of 8x8 pixels, 256 of them for training; comes with scikit-learn."""
    # A mirrored digit is not that digit.
    defaults = {"model": "cnn", "epochs": 120, "batch_size": 32, "flip": False}
    return DataSet(lambda limit, progress, download: load(limit), defaults=defaults)
