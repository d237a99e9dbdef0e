"""Distances of all layers from their reference, in one call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_devices, check_tensors
from cpfast.reference._checks import check_layers
from cpfast.results import LayerStatistics

__all__ = ["layer_rotation", "layer_statistics", "layer_sums"]


_PLAIN = frozenset({Tensor, nn.Parameter})


def _listed(op: str, name: str, tensors: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        shown = f"a tensor of shape {list(tensors.shape)}"
    else:
        shown = "" if isinstance(tensors, Iterable) else repr(tensors)
    if shown:
        raise TypeError(
            f"cpfast::{op}: {name}: expected a list of tensors, one a layer, got {shown}"
        )
    listed = list(tensors)
    # Names are made where one is needed: those of 116 tensors would take longer than the op.
    if not _PLAIN.issuperset(map(type, listed)):
        check_tensors(op, **{f"{name}[{i}]": tensor for i, tensor in enumerate(listed)})
    return listed


def _layer_arguments(
    op: str,
    params: Iterable[Tensor],
    refs: Iterable[Tensor],
    ref_sq_norms: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    # An empty list never reaches the C++ checks: the dispatcher finds no device in it.
    weights, references = _listed(op, "params", params), _listed(op, "refs", refs)
    if ref_sq_norms is not None:
        check_tensors(op, ref_sq_norms=ref_sq_norms)
    if not weights:
        raise RuntimeError(f"cpfast::{op}: params: expected at least one tensor, got an empty list")
    if not references:
        raise RuntimeError(
            f"cpfast::{op}: refs: expected {len(weights)} tensors, as many as params, got 0"
        )
    if not REFERENCE:
        _backend.require_kernels(op, "params[0]", weights[0].device)
    if ref_sq_norms is not None and ref_sq_norms.dtype == torch.float32:
        ref_sq_norms = ref_sq_norms.double()
    if REFERENCE:
        check_layers(op, weights, references, ref_sq_norms)
    return weights, references, ref_sq_norms


@torch.no_grad()
def layer_rotation(
    params: Iterable[Tensor], refs: Iterable[Tensor], ref_sq_norms: Tensor | None = None
) -> Tensor:
    """Cosine distance of each layer's weights from a reference, usually their initialisation.

    Right to 1e-4 relative or 1e-9 absolute for norms of any ratio and for every finite float32.
    Where the norms are nearly equal, to about 1e-6 relative even for distances of 1e-12, because it
    sums differences, not products. A layer whose norm is not within 1/32 of its reference's takes a
    second pass (a :class:`LayerPlan` remembers the ratio, and takes one). Not differentiable: the
    result never requires a gradient.

    Args:
        params: L tensors of float32, float64, float16 or bfloat16, any shapes and strides.
        refs: L tensors of the same shapes; dtypes may differ.
        ref_sq_norms: optional [L] float64 (float32 is converted), the sum of squares of each
            reference, else computed in the same pass.

    Returns:
        [L] float32, 1 - cos(w, w0), in [0, 2]; 0 where w and w0 are both zero or empty, 1 where
        one of them is zero, NaN where one of them holds NaN or Inf, whatever the other is.

    Raises:
        RuntimeError: for empty or mismatched lists, shapes, dtypes or devices.
        TypeError: for an argument of another type.

    Source: layer rotation, Carbonnelle & De Vleeschouwer (arXiv 1806.01603).
    """
    arguments = _layer_arguments("layer_rotation", params, refs, ref_sq_norms)
    if REFERENCE:
        return reference.layer_rotation(*arguments)
    return OPS.layer_rotation(*arguments)


@torch.no_grad()
def layer_statistics(
    params: Iterable[Tensor], refs: Iterable[Tensor], ref_sq_norms: Tensor | None = None
) -> LayerStatistics:
    """Rotation, distance, norm, sign flips and magnitude of each layer, in one pass.

    Arguments, errors and source are those of :func:`layer_rotation`; the other statistics are
    those of "The Early Phase of Neural Network Training" (arXiv 2002.10365).

    Returns:
        :class:`LayerStatistics` of [L] float32: ``cosine_distance``, ``l2_distance``, ``norm``,
        ``sign_flips`` (a fraction; a zero of either sign never flips), ``mean_abs``. Differences
        below 1e-9 of the norm may be lost in ``l2_distance``.
    """
    arguments = _layer_arguments("layer_statistics", params, refs, ref_sq_norms)
    if REFERENCE:
        return reference.layer_statistics(*arguments)
    return LayerStatistics(*OPS.layer_statistics(*arguments).unbind())


def _ratio_argument(op: str, ratio: Tensor | None) -> Tensor | None:
    if ratio is None:
        return None
    check_tensors(op, ratio=ratio)
    return ratio.double() if ratio.dtype == torch.float32 else ratio


@torch.no_grad()
def layer_sums(
    params: Iterable[Tensor], refs: Iterable[Tensor], ratio: Tensor | None = None
) -> Tensor:
    """The sums of which :func:`layer_rotation` and :func:`layer_statistics` are made.

    Those of the parts of a layer add up to those of the layer: what weights need of which no
    process holds the whole. The ratio is then that of the whole layers, and takes two calls::

        sums = ops.layer_sums(shards, ref_shards)
        dist.all_reduce(sums)
        ratio = ops.ratio_of_sums(sums)
        sums = ops.layer_sums(shards, ref_shards, ratio)
        dist.all_reduce(sums)
        rotation = ops.rotation_of_sums(sums, ratio)

    The first call can be left out where the ratio of the last measurement still is the one of
    ``ratio_of_sums(sums)``.

    Args:
        params: L tensors of float32, float64, float16 or bfloat16, any shapes and strides.
        refs: L tensors of the same shapes; dtypes may differ.
        ratio: optional [L] float64 (float32 is converted), near ``|w| / |w0|``, rounded to six
            significant bits; 1 where it is not given.

    Returns:
        [6, L] float64, whose rows :class:`LayerSums` names: ``LayerSums(*sums)``.

    Raises:
        RuntimeError: for empty or mismatched lists, shapes, dtypes or devices.
        TypeError: for an argument of another type.
    """
    weights, references, _ = _layer_arguments("layer_sums", params, refs, None)
    ratio = _ratio_argument("layer_sums", ratio)
    if REFERENCE:
        return reference.layer_sums(weights, references, ratio)
    return OPS.layer_sums(weights, references, ratio)


def _check_layer_devices(op: str, params: list[Tensor], refs: list[Tensor]) -> None:
    layers = {f"params[{i}]": p for i, p in enumerate(params)}
    check_devices(op, **layers, **{f"refs[{i}]": r for i, r in enumerate(refs)})


if not REFERENCE:

    @torch.library.register_fake("cpfast::layer_statistics")
    def _(params: list[Tensor], refs: list[Tensor], ref_sq_norms: Tensor | None = None) -> Tensor:
        _check_layer_devices("layer_statistics", params, refs)
        return params[0].new_empty((5, len(params)), dtype=torch.float32)

    @torch.library.register_fake("cpfast::layer_rotation")
    def _(params: list[Tensor], refs: list[Tensor], ref_sq_norms: Tensor | None = None) -> Tensor:
        _check_layer_devices("layer_rotation", params, refs)
        return params[0].new_empty((len(params),), dtype=torch.float32)

    @torch.library.register_fake("cpfast::layer_sums")
    def _(params: list[Tensor], refs: list[Tensor], ratio: Tensor | None = None) -> Tensor:
        _check_layer_devices("layer_sums", params, refs)
        return params[0].new_empty((6, len(params)), dtype=torch.float64)
