"""What a trained model takes: one module for each kind of data, which knows how it is prepared for
the network, read from a file, and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cpfast.registry import Registry
from cpfast.train.errors import UserError

__all__ = ["PREFIX", "Input", "inputs", "matched", "of"]


# Of an input's tensors in a file of weights: the others are the network's, by their names in it.
PREFIX = "cpfast.input."


class Input(nn.Module):
    """Samples as the data set holds them -> what the network takes.

    A kind's constructor takes `classes`, and what `options` gives; tensors are buffers.

    Attributes:
        data: the class of its data sets.
        classes: the name of each logit.
        takes_files: whether its samples can be read from files.
    """

    data: ClassVar[type]
    takes_files: ClassVar[bool] = False
    classes: tuple[str, ...]

    @classmethod
    def of(cls, data: Any) -> Input:
        """That of a data set."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, as models are built for it."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, without `classes`, as JSON has them."""
        raise NotImplementedError

    def split(self, data: Any, name: str) -> tuple[Tensor, Tensor]:
        """Samples and targets of a data set's training or test samples.

        Args:
            name: "train" or "test".

        Raises:
            UserError: they are not samples of this kind.
        """
        raise NotImplementedError

    def scores(self) -> Any:
        """Collects what predictions are worth: see `cpfast.train.scores`."""
        raise NotImplementedError

    def read(self, path: Path) -> Tensor:
        """The samples of a file, [n, ...].

        Raises:
            UserError: naming the file, or that samples of this kind lie in none.
        """
        raise UserError(f"{path}: this model takes no files")

    def is_file(self, name: str) -> bool:
        """Whether a file of a folder is a sample, by its name."""
        return False


# Modules of this package register here, and are imported when one of these is first asked.
inputs: Registry[Input] = Registry("input", "cpfast.train.inputs", "cpfast.inputs")


def matched(classes: tuple[str, ...], data: Any, labels: Tensor) -> Tensor:
    """Labels of a data set as places in `classes`, by the classes' names.

    Raises:
        UserError: a class that is none of them.
    """
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        known = ", ".join(classes[:10]) + ", ..." * (len(classes) > 10)
        raise UserError(
            f"--data {data.name}: the model does not know class {unknown[0]!r} (it knows {known})"
        )
    own = torch.tensor([classes.index(name) for name in data.classes])
    return own.to(labels.device)[labels]


def of(data: Any) -> tuple[str, Input]:
    """The name of the kind of a data set, and its input."""
    for name, entry in inputs.items():
        kind: Any = entry.factory
        if isinstance(data, kind.data):
            return name, kind.of(data)
    raise TypeError(f"data: expected one of {', '.join(inputs)}, got a {type(data).__name__}")
