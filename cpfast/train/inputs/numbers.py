"""Numbers: the rows of a table, or time series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpfast.forms import shown
from cpfast.train.data import FloatData
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
    """

    data = FloatData
    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: tuple[str, ...], features: int, length: int | None = None) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self._size = (features,) if length is None else (features, length)
        own = (features, 1)[: len(self._size)]
        self.register_buffer("mean", torch.zeros(own))
        self.register_buffer("deviation", torch.ones(own))

    @classmethod
    def of(cls, data: FloatData) -> Numbers:
        numbers = cls(data.classes, *data.shape)
        numbers.mean, numbers.deviation = data.normalisation()
        return numbers

    @property
    def shape(self) -> tuple[int, ...]:
        return self._size

    def options(self) -> dict[str, Any]:
        return dict(zip(("features", "length"), self._size, strict=False))

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

    def _shown(self, by: str = ", ") -> str:
        return by.join(map(str, self._size))
