"""The bytes of last.pt: what torch.save writes, then a SHA-256 of it.

torch.load reads such a file too, for what follows a zip archive is ignored.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from cpfast.forms import Open, Several, check
from cpfast.train.errors import UserError

FORMAT = "cpfast-checkpoint-2"  # 1 had no checksum
_FORM = Open({"epoch": int, "metrics": Several(str)})
_MARK = b"\ncpfast sha256 "
_TRAILER = len(_MARK) + 2 * hashlib.sha256().digest_size


def pack(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    buffer.write(_MARK + _digest(buffer.getbuffer()))
    return buffer.getvalue()


def unpack(data: bytes, source: Path) -> dict[str, Any]:
    """What was packed, on the CPU; nothing of `data` is used before its checksum is right.

    Raises:
        UserError: it is not whole, or not of this version; names `source`.
    """
    body, trailer = memoryview(data)[:-_TRAILER], data[-_TRAILER:]
    if not trailer.startswith(_MARK):
        raise UserError(
            f"{source}: truncated, or not a checkpoint of this version (no checksum at its end)"
        )
    if trailer != _MARK + _digest(body):
        raise UserError(f"{source}: damaged (its checksum is another)")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # zipfile, pickle and torch each have errors of their own for it
    except Exception as error:
        raise UserError(f"{source}: not a checkpoint") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise UserError(f"{source}: not a checkpoint of a cpfast run of this version")
    try:
        check(state, _FORM, "checkpoint")
        if len(state["metrics"]) != state["epoch"]:
            raise ValueError(f"{len(state['metrics'])} lines after epoch {state['epoch']}")
    except ValueError as error:
        raise UserError(f"{source}: not a checkpoint of a cpfast run ({error})") from error
    return state


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
