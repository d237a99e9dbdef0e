"""What a run's settings are where nobody says: by the kind, the size and the name of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

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
UNKNOWN = 4096  # samples, before the data are loaded


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
    settings.setdefault("lr", rate if batch is None else rate * settings["batch_size"] / batch)
    return settings


def fast(
    given: Mapping[str, Any], own: Mapping[str, Any], *, reads: str, size: int
) -> dict[str, Any]:
    """Trains well in little time on small data and on large: the batch and the epochs by the number
    of samples, a warm-up, half a cosine; chosen on validation parts of several data sets
    (benchmarks/six_sets.py)."""
    kept = {name: value for name, value in own.items() if name in _OF_DATA}
    settings: dict[str, Any] = {"method": "fast", "model": "resnet20", "flip": True, **kept}
    settings |= {"schedule": "cosine", **_OF_KIND[reads], **given}
    if settings["schedule"] != "step":
        settings.setdefault("warmup", WARMUP)
    settings.setdefault("batch_size", batch_size(size, **_BATCHES[reads]))
    steps = max(1, size // settings["batch_size"])
    settings.setdefault("epochs", min(max(math.ceil(_STEPS[reads] / steps), 10), _MOST[reads]))
    if settings["optimizer"] == "sgd":
        settings.setdefault("lr", SGD_LR * math.sqrt(settings["batch_size"] / 32))
    elif settings["optimizer"] in LEARNING_RATES:
        settings.setdefault("lr", _ADAPTIVE_LR[settings["optimizer"]])
    return settings


WARMUP = 0.1
SGD_LR = 0.2  # at batch 32, times the root of the batch's size over it
_ADAPTIVE_LR = {"adamw": 2e-3, "rmsprop": 1e-3, "adagrad": 1e-2}
_OF_KIND: dict[str, dict[str, Any]] = {
    "images": {
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "bn_momentum": 0.1,
        "label_smoothing": 0.1,
    },
    "text": {"optimizer": "adamw", "weight_decay": 0.1, "clip": 1.0, "flip": False},
    "table": {"optimizer": "adamw", "weight_decay": 1e-2, "flip": False},
    "series": {"optimizer": "adamw", "weight_decay": 1e-2, "flip": False},
}
_BATCHES: dict[str, dict[str, int]] = {
    "images": {"least": 16, "most": 128},
    "text": {"least": 16, "most": 64},
    "table": {"least": 16, "most": 256},
    "series": {"least": 16, "most": 64},
}
_STEPS = {"images": 4000, "text": 2000, "table": 3000, "series": 1500}
_MOST = {"images": 100, "text": 30, "table": 100, "series": 200}


def batch_size(size: int, *, least: int, most: int) -> int:
    """The power of two that makes some hundred steps of an epoch, within what is common.

    >>> [batch_size(size, least=16, most=128) for size in (256, 4000, 10_000, 50_000)]
    [16, 32, 64, 128]
    """
    return min(max(2 ** math.floor(math.log2(max(size / 100, 1))), least), most)


PRESETS: dict[str, Preset] = {"fast": fast, "paper": paper}
