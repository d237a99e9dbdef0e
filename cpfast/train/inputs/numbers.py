"""Numbers: the rows of a table, or time series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpfast.forms import shown
from cpfast.train.data import FloatData, npz, tables, ts
from cpfast.train.data.features import Column, encoded
from cpfast.train.errors import UserError
from cpfast.train.inputs import Input, inputs, matched
from cpfast.train.scores.classes import ClassScores


@inputs.register("numbers", source="this project")
class Numbers(Input):
    """Numbers [N, F] or [N, C, T] -> float32, less the mean of the training data, over their
    standard deviation.

    Args:
        classes: the name of each label.
        features: F, or of series the channels C.
        length: of series, T.
        columns: of a table whose columns have names, what the features are made of: each as
            `cpfast.train.data.features.Column` has it.
    """

    data = FloatData
    takes_files = True
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        classes: tuple[str, ...],
        features: int,
        length: int | None = None,
        columns: Sequence[Sequence[Any]] = (),
    ) -> None:
        super().__init__()
        self.columns = tuple(
            Column(str(name), mean, tuple(map(str, values))) for name, mean, values in columns
        )
        self.classes = tuple(classes)
        self._size = (features,) if length is None else (features, length)
        own = (features, 1)[: len(self._size)]
        self.register_buffer("mean", torch.zeros(own))
        self.register_buffer("deviation", torch.ones(own))

    @classmethod
    def of(cls, data: FloatData) -> Numbers:
        features, length = (*data.shape, None)[:2]
        assert features is not None
        numbers = cls(data.classes, features, length, data.columns)
        numbers.mean, numbers.deviation = data.normalisation()
        return numbers

    @property
    def shape(self) -> tuple[int, ...]:
        return self._size

    def options(self) -> dict[str, Any]:
        sizes: dict[str, Any] = dict(zip(("features", "length"), self._size, strict=False))
        if not self.columns:
            return sizes
        return {**sizes, "columns": [[c.name, c.mean, list(c.values)] for c in self.columns]}

    def forward(self, values: Tensor) -> Tensor:
        """
        Raises:
            TypeError, ValueError: the values are of another dtype or shape.
        """
        if values.shape[1:] != self._size or values.dim() != len(self._size) + 1:
            raise ValueError(f"values: expected [N, {self._shown()}], got {list(values.shape)}")
        if values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"values: expected numbers, got {shown(values)}")
        return (values.float() - self.mean) / self.deviation

    def split(self, data: Any, name: str) -> tuple[Tensor, Tensor]:
        """Classes are matched by their names, features by their places.

        Raises:
            UserError: no numbers, or of another shape, or of a class that the model does not know.
        """
        if not isinstance(data, FloatData):
            raise UserError(f"--data {data.name}: no numbers, which the model was trained on")
        if data.shape != self._size:
            raise UserError(
                f"--data {data.name}: samples of {'x'.join(map(str, data.shape))}; the model takes "
                f"{self._shown('x')}"
            )
        values, labels = {
            "train": (data.train_values, data.train_labels),
            "test": (data.test_values, data.test_labels),
        }[name]
        return values, matched(self.classes, data, labels)

    def scores(self) -> ClassScores:
        return ClassScores(self.classes)

    def is_file(self, name: str) -> bool:
        return Path(name).suffix.lower() in _READERS

    def read(self, path: Path) -> Tensor:
        """float32 [N, F] or [N, C, T]: the rows of a table, with the columns that were trained on,
        in any order and beside any others; or the series of a file.

        Raises:
            UserError: it cannot be read, or its samples are of another shape.
        """
        suffix = path.suffix.lower()
        if suffix not in _READERS:
            raise UserError(f"{path}: no file of numbers ({', '.join(_READERS)})")
        values = torch.from_numpy(np.array(_READERS[suffix](self, path), dtype=np.float32))
        if values.shape[1:] != self._size or values.dim() != len(self._size) + 1:
            raise UserError(
                f"{path}: samples of {'x'.join(map(str, values.shape[1:])) or 'one number'}; the "
                f"model takes {self._shown('x')}"
            )
        finite = values.flatten(1).isfinite().all(1)
        if not finite.all():
            raise UserError(
                f"{path}: sample {int((~finite).nonzero()[0]) + 1} holds a number that is not "
                "finite in float32"
            )
        return values

    def _of_table(self, path: Path) -> np.ndarray:
        if not self.columns:
            raise UserError(
                f"{path}: the model was trained on arrays, or by an earlier version, and knows no "
                "columns by their names; give it an .npz"
            )
        return encoded(str(path), tables.read(path, least=1), self.columns)

    def _of_series(self, path: Path) -> np.ndarray:
        return ts.read(path, labelled=False).values

    def _of_arrays(self, path: Path) -> np.ndarray:
        return npz.samples(path)

    def _shown(self, by: str = ", ") -> str:
        return by.join(map(str, self._size))


_READERS = {
    **dict.fromkeys(tables.SUFFIXES, Numbers._of_table),
    ".npz": Numbers._of_arrays,
    ".ts": Numbers._of_series,
}
