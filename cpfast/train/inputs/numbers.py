"""Rows of tables and time series: less the training data's mean, over their deviation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpfast.train.data import FloatData
from cpfast.train.errors import UserError
from cpfast.train.inputs import Input, inputs, matched
from cpfast.train.scores.classes import ClassScores


@inputs.register("numbers", source="this project")
class Numbers(Input):
    """Floating point [N, features], or [N, channels, length] -> float32 of the same shape."""

    data = FloatData
    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classes, self._shape = tuple(classes), tuple(shape)
        own = self._shape if len(self._shape) == 1 else (self._shape[0], 1)
        self.register_buffer("mean", torch.zeros(own))
        self.register_buffer("deviation", torch.ones(own))

    @classmethod
    def of(cls, data: FloatData) -> Numbers:
        numbers = cls(data.classes, data.shape)
        numbers.mean, numbers.deviation = data.normalisation()
        return numbers

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def options(self) -> dict[str, Any]:
        return {"shape": list(self._shape)}

    def forward(self, values: Tensor) -> Tensor:
        """
        Raises:
            TypeError, ValueError: they are of another dtype or shape.
        """
        if tuple(values.shape[1:]) != self._shape:
            raise ValueError(f"values: expected [N, {self._size()}], got {list(values.shape)}")
        if not values.is_floating_point():
            raise TypeError(f"values: expected floating point, got {values.dtype}")
        return (values.float() - self.mean) / self.deviation

    def split(self, data: Any, name: str) -> tuple[Tensor, Tensor]:
        """Classes are matched by their names.

        Raises:
            UserError: no numbers, or of another shape, or of a class that the model does not know.
        """
        if not isinstance(data, FloatData):
            raise UserError(f"--data {data.name}: no numbers, which the model was trained on")
        values, labels = {
            "train": (data.train_values, data.train_labels),
            "test": (data.test_values, data.test_labels),
        }[name]
        if data.shape != self._shape:
            raise UserError(
                f"--data {data.name}: samples of {'x'.join(map(str, data.shape))} numbers; the "
                f"model takes {self._size('x')}"
            )
        return values, matched(self.classes, data)[labels]

    def scores(self) -> ClassScores:
        return ClassScores(self.classes)

    def _size(self, by: str = ", ") -> str:
        return by.join(map(str, self._shape))
