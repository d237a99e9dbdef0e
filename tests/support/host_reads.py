"""Counts what makes the host wait for a device; it shows on the CPU, where it costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What reads a value, or makes a tensor whose shape depends on values.
_READING_OPS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.aten.bincount.default,
}
# Of a CPU tensor these read its memory, without an op.
_READING_METHODS = ("tolist", "numpy", "cpu")


class _Mode(TorchDispatchMode):
    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexed = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if (func in _READING_OPS or indexed) and not (kwargs or {}).get("output_size"):
            self._reads.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of all reads within the block; within a read, none is counted."""
    reads: list[str] = []
    methods = {name: getattr(torch.Tensor, name) for name in _READING_METHODS}

    def watched(name):
        def read(tensor, *args, **kwargs):
            reads.append(name)
            return methods[name](tensor, *args, **kwargs)

        return read

    for name in methods:
        setattr(torch.Tensor, name, watched(name))
    try:
        with _Mode(reads):
            yield reads
    finally:
        for name, method in methods.items():
            setattr(torch.Tensor, name, method)
