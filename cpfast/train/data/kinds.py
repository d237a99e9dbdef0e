"""The kinds of data that a model reads, and what a run on each begins from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        samples: what one calls them.
        settings: those of a recipe that go with it, of those that do not go with every kind.
        defaults: of a run, where they are not the common ones.
    """

    samples: str
    settings: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = {
    "optimizer": "adamw", "schedule": "cosine", "repeats": 1, "flip": False, "batch_size": 32,
}  # fmt: skip
KINDS = {
    "images": Kind("images", ("augment", "mixup", "cutmix", "resolution")),
    "text": Kind(
        "sequences", ("length",),
        {**_PLAIN, "model": "transformer", "epochs": 10, "weight_decay": 0.1},
    ),
    "table": Kind("rows", ("mixup",), {**_PLAIN, "model": "mlp", "epochs": 60, "lr": 2e-3}),
    "series": Kind("series", ("mixup",), {**_PLAIN, "model": "resnet1d", "epochs": 100}),
}  # fmt: skip
