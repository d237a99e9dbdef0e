"""What the kernels refuse, refused by their twins too: they are what runs where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_range(
    op: str, name: str, values: Tensor, end: int, expected: str, *, ignored: int | None = None
) -> None:
    """Whether all values, [B] or [B, T] integers, are in [0, end), or ignored.

    Raises:
        RuntimeError: naming the first that is not.
    """
    flat = values.reshape(-1)
    wrong = (flat < 0) | (flat >= end)
    if ignored is not None:
        wrong &= flat != ignored
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        at = first if values.dim() == 1 else ", ".join(map(str, divmod(first, values.shape[1])))
        raise RuntimeError(f"cpfast::{op}: {name}[{at}]: expected {expected}, got {flat[first]}")


def check_layers(
    op: str, params: Sequence[Tensor], refs: Sequence[Tensor], norms: Tensor | None
) -> None:
    """Whether params and refs pair, and there is a norm for each.

    Raises:
        RuntimeError: naming the first that does not fit.
    """
    if len(refs) != len(params):
        raise RuntimeError(
            f"cpfast::{op}: refs: expected {len(params)} tensors, as many as params, "
            f"got {len(refs)}"
        )
    for i, (param, ref) in enumerate(zip(params, refs, strict=True)):
        for name, tensor in (("params", param), ("refs", ref)):
            if tensor.dtype not in _FLOATS:
                raise RuntimeError(
                    f"cpfast::{op}: {name}[{i}]: expected float32, float64, float16 or bfloat16, "
                    f"got {_name(tensor.dtype)}"
                )
        if ref.shape != param.shape:
            raise RuntimeError(
                f"cpfast::{op}: refs[{i}]: expected shape {list(param.shape)} as params[{i}], "
                f"got {list(ref.shape)}"
            )
    if norms is not None and norms.shape != (len(params),):
        raise RuntimeError(
            f"cpfast::{op}: ref_sq_norms: expected shape [{len(params)}], got {list(norms.shape)}"
        )
    if norms is not None and norms.dtype != torch.float64:
        raise RuntimeError(
            f"cpfast::{op}: ref_sq_norms: expected dtype float64, got {_name(norms.dtype)}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
