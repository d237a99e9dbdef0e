"""What is tuned: settings to draw from, and the run that a draw is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpfast.train.config import Config

Settings = dict[str, Any]
"""By the knob's name; what is left out is as it was."""
Knobs = Mapping[str, Sequence[Any]]

# Of the control. The first two are factors of the configuration's. What is left out stays as it is
# given, so no factor is 1.
CONTROL: Knobs = {
    "lr": (0.25, 0.35, 0.5, 0.7, 1.4, 2.0, 2.8, 4.0),
    "weight_decay": (0.2, 5.0),
    "warmup": (0.0, 0.05, 0.1, 0.2),
    "label_smoothing": (0.0, 0.1),
    "schedule": ("cosine", "linear"),
    "decay_power": (0.7, 1.0, 1.5, 2.0),
    "warp": (None, "2@0.3", "2@0.6", "3@0.5"),  # passes, and the share of the epochs
}
# Of the control on images, beside those: what augmentation is worth depends on how long it has.
IMAGES: Knobs = {"augment": ("paper", "crop-flip", "none")}
# Of a method, beside its own: what it begins from is the control's best of the same cost.
METHOD: Knobs = {"lr": (0.5, 0.7, 1.4, 2.0)}
_FACTORS = ("lr", "weight_decay")


def of_control(reads: str) -> Knobs:
    """
    Args:
        reads: the kind of data.
    """
    return {**CONTROL, **IMAGES} if reads == "images" else CONTROL


def draw(knobs: Knobs, count: int, seed: int, name: str) -> list[Settings]:
    """So many different settings, or all that there are; the first leaves everything as it is, and
    each of the others half of the knobs in the mean: what was given is mostly near what is good,
    and a draw of everything is far away.

    >>> draw({"a": (1, 2)}, 5, 0, "x") == [{}, *draw({"a": (1, 2)}, 5, 0, "x")[1:]]
    True
    >>> len(draw({"a": (1, 2)}, 5, 0, "x"))
    3
    """
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    number = 1
    for values in knobs.values():
        number *= 1 + len(values)
    drawn: list[Settings] = [{}]
    while len(drawn) < min(count, number):
        one = {
            knob: values[int(random.integers(len(values)))]
            for knob, values in knobs.items()
            if random.integers(2)
        }
        if one not in drawn:
            drawn.append(one)
    return drawn


def configured(config: Config, settings: Mapping[str, Any], epochs: int) -> Config:
    """The configuration with settings of the control's, of so many epochs."""
    given = dict(settings)
    changes: dict[str, Any] = {
        name: getattr(config, name) * given.pop(name) for name in _FACTORS if name in given
    }
    if "warp" in given:
        changes["warp"] = _warp(given.pop("warp"), epochs)
    return config.replace(
        **{**changes, **given}, epochs=epochs, eval_every=epochs, save_every=epochs
    )


def _warp(text: str | None, epochs: int) -> str | None:
    if text is None:
        return None
    passes, _, share = text.partition("@")
    slow = round(float(share) * epochs / int(passes)) * int(passes)
    return f"{passes}@{slow}" if 0 < slow <= epochs else None


def words(settings: Mapping[str, Any]) -> str:
    """
    >>> words({"lr": 2.0, "warp": None, "resolution.share": 0.5})
    'lr x 2, warp none, resolution.share 0.5'
    >>> words({})
    'as given'
    """
    parts = []
    for name, value in settings.items():
        shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else value
        parts.append(f"{name} x {shown}" if name in _FACTORS else f"{name} {shown}")
    return ", ".join(parts) or "as given"
