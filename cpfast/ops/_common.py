"""What the ops share: the compiled namespace, and checks of what never reaches it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from cpfast import _backend

__all__ = ["OPS", "REFERENCE", "check_devices", "check_tensors", "real", "whole"]

REFERENCE = _backend.NATIVE is None
OPS = torch.ops.cpfast


def check_devices(op: str, **tensors: Tensor | None) -> None:
    # One meta tensor sends the whole call to the fake kernel, whatever the others are.
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise RuntimeError(f"cpfast::{op}: expected one device, got {found}")


# The dispatcher's own messages take many lines, and name the argument in the last.


def check_tensors(op: str, **arguments: Any) -> None:
    """Whether each argument is a tensor.

    Raises:
        TypeError: naming the first that is none.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"cpfast::{op}: {name}: expected a tensor, got {_shown(value)}")


def whole(op: str, name: str, value: Any) -> int:
    """An integer of 64 bits.

    Raises:
        TypeError: for another type.
        RuntimeError: for one out of range.
    """
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"cpfast::{op}: {name}: expected an integer, got {_shown(value)}") from None
    if not -(2**63) <= number < 2**63:
        raise RuntimeError(f"cpfast::{op}: {name}: expected an integer of 64 bits, got {number}")
    return number


def real(op: str, name: str, value: Any) -> float:
    """A number.

    Raises:
        TypeError: for another type.
    """
    if type(value) is float:
        return value
    try:
        return float(value if not isinstance(value, (str, bytes)) else ())  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"cpfast::{op}: {name}: expected a number, got {_shown(value)}") from None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
