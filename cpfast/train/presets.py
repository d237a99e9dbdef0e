"""What a run's settings are where nobody says: by the kind, the size and the name of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from cpfast.train.models import models

__all__ = ["PRESETS", "fast", "paper"]

OF_PAPER: dict[str, Any] = {
    "model": "resnet20", "method": "detector+prune", "epochs": 200, "batch_size": 128,
    "optimizer": "sgd", "weight_decay": 2e-4, "flip": True,
}  # fmt: skip
# 2506.15954's .01 at batch 32, scaled linearly: it keeps the rotation per epoch the same.
LEARNING_RATES = {
    "sgd": (0.01, 32), "adamw": (1e-3, None), "rmsprop": (1e-3, None), "adagrad": (1e-2, None)
}  # fmt: skip

# Of a data set's own settings, what says what it is, and not how it was trained on.
_OF_DATA = ("model", "flip")
UNKNOWN = 1  # sample, before the data are loaded: as many epochs as there may be


class Preset(Protocol):
    def __call__(
        self, given: Mapping[str, Any], own: Mapping[str, Any], *, reads: str, size: int
    ) -> dict[str, Any]:
        """Settings for what is not given.

        Args:
            given: by name.
            own: those of the data set.
            reads: what kind of data it is.
            size: number of training samples.
        """
        ...


def paper(
    given: Mapping[str, Any], own: Mapping[str, Any], *, reads: str, size: int
) -> dict[str, Any]:
    """The recipe of arXiv 2506.15954: SGD, a learning rate of .01 at batch 32 and in proportion,
    divided by ten at one half and three quarters, and the models' BatchNorm as Keras has it."""
    settings = {**OF_PAPER, **own, **given}
    if settings["optimizer"] not in LEARNING_RATES:  # is refused later
        return settings
    rate, batch = LEARNING_RATES[settings["optimizer"]]
    if settings["model"] == "cnn" and settings["optimizer"] == "sgd":
        rate *= 10  # its layers would hardly rotate over so few images
    settings.setdefault("lr", rate if batch is None else rate * _step_size(settings) / batch)
    return settings


def fast(
    given: Mapping[str, Any], own: Mapping[str, Any], *, reads: str, size: int
) -> dict[str, Any]:
    """Trains well in little time on small data and on large: the batch and the epochs by the number
    of samples, a warm-up, half a cosine. Ours; docs/training.md says which of the numbers were
    tried, and benchmarks/six_sets.py compares them with a tuned plain loop."""
    settings: dict[str, Any] = {"method": "fast", "model": "resnet20", "flip": True}
    settings |= {name: value for name, value in own.items() if name in _OF_DATA}
    settings |= {"schedule": "cosine", "bn_momentum": 0.1, **given}
    known = settings["model"] in models  # or it is refused later
    settings.setdefault("optimizer", models.make(settings["model"]).optimizer if known else "sgd")
    settings = {
        **_OF_OPTIMIZER.get(settings["optimizer"], {}),
        **_OF_KIND[reads].settings,
        **settings,
    }
    if settings["schedule"] != "step":
        settings.setdefault("warmup", WARMUP)
    kind = _OF_KIND[reads]
    settings.setdefault("batch_size", batch_size(size, least=16, most=kind.batch))
    steps = max(1, size // _step_size(settings))
    settings.setdefault("epochs", min(max(math.ceil(kind.steps / steps), kind.least), kind.epochs))
    if settings["optimizer"] == "sgd":
        settings.setdefault("lr", SGD_LR * math.sqrt(_step_size(settings) / 32))
    elif settings["optimizer"] in LEARNING_RATES:
        settings.setdefault("lr", _ADAPTIVE_LR[settings["optimizer"]])
    return settings


WARMUP = 0.1
SGD_LR = 0.2  # at batch 32, times the root of the batch's size over it
_ADAPTIVE_LR = {"adamw": 2e-3, "rmsprop": 1e-3, "adagrad": 1e-2}
_OF_OPTIMIZER: dict[str, dict[str, Any]] = {
    "sgd": {"weight_decay": 5e-4},
    "adamw": {"weight_decay": 0.05, "clip": 1.0},
    "rmsprop": {"weight_decay": 5e-4},
    "adagrad": {"weight_decay": 5e-4},
}


class _Kind(NamedTuple):
    """Of a kind of data: the steps that a training is to have, within the fewest and the most
    epochs, the largest batch, and settings."""

    steps: int
    least: int
    epochs: int
    batch: int
    settings: dict[str, Any]


_OF_KIND = {
    "images": _Kind(4000, 10, 100, 128, {"label_smoothing": 0.1}),
    "text": _Kind(1500, 2, 30, 32, {"weight_decay": 0.1}),
    "table": _Kind(4000, 10, 100, 128, {}),
    "series": _Kind(3000, 10, 200, 64, {}),
}


def _step_size(settings: Mapping[str, Any]) -> int:
    return settings["batch_size"] * settings.get("accumulate", 1)


def batch_size(size: int, *, least: int, most: int) -> int:
    """The power of two that makes some hundred steps of an epoch, within what is common.

    >>> [batch_size(size, least=16, most=128) for size in (256, 4000, 10_000, 50_000)]
    [16, 32, 64, 128]
    """
    return min(max(2 ** math.floor(math.log2(max(size / 100, 1))), least), most)


PRESETS: dict[str, Preset] = {"fast": fast, "paper": paper}
