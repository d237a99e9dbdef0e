"""A batch's scores into the table of all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast import _backend, reference
from cpfast.ops._common import OPS, REFERENCE, check_devices, check_tensors

__all__ = ["record_scores"]


def record_scores(scores: Tensor, index: Tensor, values: Tensor) -> None:
    """Writes ``scores[index] = values`` in place; of equal indices the last one wins.

    Args:
        scores: [N] float32, contiguous; written.
        index: [B] int64 or int32 in [0, N).
        values: [B]; converted to float32.

    Raises:
        RuntimeError: for wrong shapes, dtypes or devices, or an index out of range (on the CPU;
            on CUDA that stops the device, as torch's own indexing does).
        TypeError: for an argument that is no tensor.
    """
    if not (
        isinstance(scores, Tensor) and isinstance(index, Tensor) and isinstance(values, Tensor)
    ):
        check_tensors("record_scores", scores=scores, index=index, values=values)
    if values.requires_grad:
        values = values.detach()
    if values.dtype != torch.float32:
        values = values.to(torch.float32)
    if REFERENCE:
        with torch.no_grad():
            reference.record_scores(scores, index, values)
        return
    _backend.require_kernels("record_scores", "scores", scores.device)
    OPS.record_scores.default(scores, index.contiguous(), values.contiguous())
    torch.autograd.graph.increment_version(scores)


if not REFERENCE:

    @torch.library.register_fake("cpfast::record_scores")
    def _(scores: Tensor, index: Tensor, values: Tensor) -> None:
        check_devices("record_scores", scores=scores, index=index, values=values)
