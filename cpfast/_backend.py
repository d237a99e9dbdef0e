"""Loads the compiled ops, or says in one line what is missing and how to get it."""

from __future__ import annotations

import importlib.machinery
import os
import pathlib
from typing import Any

import torch

__all__ = ["backend", "build_info", "require_kernels"]

_OLDEST_TORCH = (2, 11)
_REBUILD = "pip install --no-build-isolation . in a checkout of cpfast"
_FOLDER = pathlib.Path(__file__).parent


def _check_torch() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < _OLDEST_TORCH:
        raise ImportError(
            f"cpfast needs torch >= 2.11, found {torch.__version__}: pip install 'torch>=2.11'"
        )


def _wants_reference() -> bool:
    setting = os.environ.get("CPFAST_BACKEND", "")
    if setting not in ("", "reference"):
        raise ImportError(f"CPFAST_BACKEND: expected 'reference' or nothing, got {setting!r}")
    return setting == "reference"


def _load_native() -> Any:
    try:
        from cpfast import _C
    except ImportError as error:
        hidden = ""
        if (_FOLDER.parent / "setup.py").exists():
            hidden = (
                "; this is a checkout, whose cpfast/ hides an installed one: for that, start "
                "elsewhere, or install with pip install -e ."
            )
        raise ImportError(
            f"cpfast's compiled ops cannot be loaded from {_FOLDER} ({error}): build them with "
            f"{_REBUILD}, or set CPFAST_BACKEND=reference to run on plain PyTorch{hidden}"
        ) from None
    return _C


def _load_cuda() -> bool:
    # Its name ends as that of an extension module does, though it holds ops alone.
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = _FOLDER / f"_cuda{suffix}"
        if library.exists() and torch.version.cuda is not None:
            torch.ops.load_library(str(library))
            return True
    return False


_check_torch()
NATIVE = None if _wants_reference() else _load_native()
CUDA_LOADED = NATIVE is not None and _load_cuda()


def backend() -> str:
    """What the ops run on: ``"cuda"``, ``"cpu"``, or ``"reference"`` (plain PyTorch).

    ``"cuda"`` means that tensors on a GPU and on the CPU are both served by compiled kernels.
    The reference is used only where the environment sets ``CPFAST_BACKEND=reference``.
    """
    if NATIVE is None:
        return "reference"
    return "cuda" if CUDA_LOADED and torch.cuda.is_available() else "cpu"


def build_info() -> dict[str, str]:
    """How the compiled ops were built: versions, ABI target, compiler, flags, architectures.

    Empty under ``CPFAST_BACKEND=reference``.
    """
    return {} if NATIVE is None else dict(NATIVE.build_info())


def require_kernels(op: str, argument: str, device: torch.device) -> None:
    """Raises RuntimeError where no compiled kernel serves tensors on ``device``."""
    if device.type in ("cpu", "meta") or (device.type == "cuda" and CUDA_LOADED):
        return
    if device.type == "cuda":
        raise RuntimeError(
            f"cpfast.ops.{op}: {argument} is on {device}, but this build of cpfast has no CUDA "
            f"ops: rebuild with a CUDA build of torch and nvcc, CPFAST_CUDA=1 {_REBUILD}"
        )
    raise RuntimeError(
        f"cpfast.ops.{op}: {argument} is on {device}, but the ops run on cpu and cuda: "
        "move it, or set CPFAST_BACKEND=reference"
    )
