"""Networks that this package does not have: timm's, `timm:NAME`, and people's own,
`module:function`, which is called as ``function(shape, outputs)``."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from cpfast.train import own
from cpfast.train.errors import MissingLibrary, UserError, first_line

TIMM = "timm:"


def is_elsewhere(name: str) -> bool:
    return name.startswith(TIMM) or own.is_own(name)


def reads(name: str) -> str | None:
    """What kind of data; None: whatever there is."""
    return "images" if name.startswith(TIMM) else None


def build(name: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """
    Raises:
        UserError: it cannot be made, or is no `nn.Module`.
    """
    if name.startswith(TIMM):
        return _timm(name, shape, outputs)
    model = own.call("--model", name, shape, outputs)
    if not isinstance(model, nn.Module):
        raise UserError(f"--model {name}: it returns a {type(model).__name__}, not an nn.Module")
    return model


def _timm(name: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    # a torchvision that does not fit torch raises others than ImportError
    except Exception as error:
        raise MissingLibrary(
            f"--model {name}: timm cannot be imported ({first_line(error)}); pip install timm"
        ) from error
    height, width, channels = shape
    options: dict[str, Any] = {"num_classes": outputs, "in_chans": channels}
    try:
        try:
            return timm.create_model(name.removeprefix(TIMM), img_size=(height, width), **options)
        except TypeError:  # networks of any size do not take one
            return timm.create_model(name.removeprefix(TIMM), **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--model {name}: {first_line(error)}") from error
