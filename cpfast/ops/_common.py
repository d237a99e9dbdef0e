"""What the ops share: the compiled namespace, and checks of devices."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast import _backend

__all__ = ["OPS", "REFERENCE", "check_devices"]

REFERENCE = _backend.NATIVE is None
OPS = torch.ops.cpfast


def check_devices(op: str, **tensors: Tensor | None) -> None:
    # One meta tensor sends the whole call to the fake kernel, whatever the others are.
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise RuntimeError(f"cpfast::{op}: expected one device, got {found}")
