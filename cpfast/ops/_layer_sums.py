"""What the raw sums of layers come to: for weights of which no process holds the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast import reference
from cpfast.ops._common import check_tensors
from cpfast.results import LayerStatistics

__all__ = ["ratio_of_sums", "rotation_of_sums", "statistics_of_sums"]


def _check(op: str, sums: Tensor, ratio: Tensor | None = None, **columns: Tensor) -> None:
    given = columns if ratio is None else {**columns, "ratio": ratio}
    check_tensors(op, sums=sums, **given)
    if sums.dim() != 2 or sums.shape[0] != 6 or sums.dtype != torch.float64:
        dtype = str(sums.dtype).removeprefix("torch.")
        raise RuntimeError(
            f"cpfast::{op}: sums: expected float64 [6, L] of layer_sums, got {dtype} "
            f"{list(sums.shape)}"
        )
    for name, tensor in given.items():
        if tensor.shape != sums.shape[1:]:
            raise RuntimeError(
                f"cpfast::{op}: {name}: expected shape [{sums.shape[1]}], got {list(tensor.shape)}"
            )


@torch.no_grad()
def ratio_of_sums(sums: Tensor) -> Tensor:
    """The ratio with which :func:`layer_sums` gives exact rotations of the layers.

    ``|w| / |w0|`` rounded to six significant bits; 1 within 1/32 of 1, and where a layer is zero
    or not finite.

    Args:
        sums: [6, L] float64 of :func:`layer_sums`, with any ratio.

    Returns:
        [L] float64.

    Raises:
        RuntimeError: for another shape or dtype.
        TypeError: for an argument that is no tensor.
    """
    _check("ratio_of_sums", sums)
    return reference.ratio_of_sums(sums)


@torch.no_grad()
def rotation_of_sums(sums: Tensor, ratio: Tensor | None = None) -> Tensor:
    """:func:`layer_rotation` of sums: equal to it to about 1e-7 where the ratio is that of
    :func:`ratio_of_sums`.

    With another ratio s the error is that of the sums (under 1e-6) times
    ``(|w| - s |w0|)^2 / (2 s |w| |w0|)``.

    Args:
        sums: [6, L] float64 of :func:`layer_sums`, or sums of those of all parts of the layers.
        ratio: the one that the sums were made with.

    Returns:
        [L] float32.

    Raises:
        RuntimeError: for another shape or dtype.
        TypeError: for an argument that is no tensor.
    """
    _check("rotation_of_sums", sums, ratio=ratio)
    return reference.rotation_of_sums(sums, ratio)


@torch.no_grad()
def statistics_of_sums(sums: Tensor, numel: Tensor, ratio: Tensor | None = None) -> LayerStatistics:
    """:func:`layer_statistics` of sums, as :func:`rotation_of_sums`.

    Args:
        sums: [6, L] float64 of :func:`layer_sums`, or sums of those of all parts of the layers.
        numel: [L], the number of elements of the whole layers.
        ratio: the one that the sums were made with.

    Raises:
        RuntimeError: for another shape or dtype.
        TypeError: for an argument that is no tensor.
    """
    _check("statistics_of_sums", sums, numel=numel, ratio=ratio)
    return reference.statistics_of_sums(sums, numel, ratio)
