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


def check_elements(op: str, input: Tensor, target: Tensor, *, fractions: bool = False) -> None:
    """Whether input and target are floating, or the target fractions, and samples have elements.

    Raises:
        RuntimeError: naming the argument, and the first that is no fraction.
    """
    if input.dtype not in _FLOATS:
        raise RuntimeError(
            f"cpfast::{op}: input: expected float32, float64, float16 or bfloat16, "
            f"got {_name(input.dtype)}"
        )
    if 0 in input.shape[1:]:
        raise RuntimeError(
            f"cpfast::{op}: input: expected at least one element a sample, got shape "
            f"{list(input.shape)}"
        )
    if target.dtype not in _FLOATS and (not fractions or target.is_complex()):
        raise RuntimeError(
            f"cpfast::{op}: target: expected dtype {_name(input.dtype)}, got {_name(target.dtype)}"
        )
    if fractions:
        wrong = ~((target >= 0) & (target <= 1))
        if wrong.any():
            first = tuple(wrong.nonzero()[0].tolist())
            raise RuntimeError(
                f"cpfast::{op}: target[{', '.join(map(str, first))}]: expected a number in [0, 1], "
                f"got {target[first].item():g}"
            )


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
