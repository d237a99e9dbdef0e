"""UCI's Statlog (Image Segmentation), a table that installs with river."""

from __future__ import annotations

import csv
import io
import zipfile

import numpy as np

from cpfast.train.data import DataSet, datasets
from cpfast.train.data.arrays import labelled
from cpfast.train.data.installed import locate
from cpfast.train.data.sets import FloatData

LABEL = "category"


def load(limit: int | None) -> FloatData:
    """2,310 patches of 3x3 pixels of outdoor photographs, described by 18 numbers, 7 classes."""
    path = locate("river", "datasets/segment.csv.zip", "segments")
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    names = [row.pop(LABEL) for row in rows]
    classes = sorted(set(names))
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    labels = np.array([classes.index(name) for name in names])
    return labelled(str(path), values, labels, classes, limit=limit, name="segments")


@datasets.register("segments", source="UCI Statlog (Image Segmentation); river")
def segments() -> DataSet:
    """2,310 image segments in 18 numbers, 7 classes: a table that comes with river."""
    return DataSet(lambda limit, progress, download: load(limit), reads="table")
