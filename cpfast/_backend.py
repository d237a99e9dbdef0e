"""Loads the compiled ops, or says in one line what is missing and how to get it."""

from __future__ import annotations

import importlib.machinery
import os
import pathlib
import warnings
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
    available = _C.build_info()["cpu_kernels_here"].split()
    asked = os.environ.get("CPFAST_ISA", "")
    if asked not in ("", *available):
        raise ImportError(
            f"CPFAST_ISA: expected one of {', '.join(available)}, the instruction sets of this "
            f"machine, or nothing; got {asked!r}"
        )
    return _C


def _cuda_library() -> pathlib.Path | None:
    # Its name ends as that of an extension module does, though it holds ops alone.
    libraries = (_FOLDER / f"_cuda{end}" for end in importlib.machinery.EXTENSION_SUFFIXES)
    return next((library for library in libraries if library.exists()), None)


def _load_cuda() -> str:
    """Why there are no CUDA ops; "" once they are loaded."""
    library = _cuda_library()
    if library is None:
        return (
            "this build of cpfast has no CUDA ops: rebuild with a CUDA build of torch and nvcc, "
            f"CPFAST_CUDA=1 {_REBUILD}"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA: install a CUDA build of torch"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # torch names cpfast's library, and the cause the one that cannot be found.
        missing = _why_cuda_fails(str(error.__cause__ or error))
        warnings.warn(
            f"{missing}; until then the ops run on the CPU alone", RuntimeWarning, stacklevel=1
        )
        return missing
    return ""


def _why_cuda_fails(error: str) -> str:
    built, present = _load_native().build_info()["cuda"], torch.version.cuda
    cure = "put the folder of what is missing in LD_LIBRARY_PATH"
    if present is not None and built.split(".")[0] != present.split(".")[0]:
        cure = f"install a torch with CUDA {built.split('.')[0]}"
    return (
        f"cpfast's CUDA ops cannot be loaded ({error}): they were built with CUDA {built}, and "
        f"torch {torch.__version__} has CUDA {present}; {cure}, or rebuild them with "
        f"CPFAST_CUDA=1 {_REBUILD}"
    )


_check_torch()
NATIVE = None if _wants_reference() else _load_native()
CUDA_MISSING = "CPFAST_BACKEND=reference" if NATIVE is None else _load_cuda()


def backend() -> str:
    """What the ops run on: ``"cuda"``, ``"cpu"``, or ``"reference"`` (plain PyTorch).

    ``"cuda"`` means that tensors on a GPU and on the CPU are both served by compiled kernels.
    The reference is used only where the environment sets ``CPFAST_BACKEND=reference``.
    """
    if NATIVE is None:
        return "reference"
    return "cuda" if not CUDA_MISSING and torch.cuda.is_available() else "cpu"


def build_info() -> dict[str, str]:
    """How the compiled ops were built: versions, ABI target, compiler, flags, architectures.

    Empty under ``CPFAST_BACKEND=reference``.
    """
    if NATIVE is None:
        return {}
    info = dict(NATIVE.build_info())
    if _cuda_library() is None:  # its build may have failed after that of the rest
        info |= {"cuda": "none", "cuda_architectures": "none"}
    return info


def require_kernels(op: str, argument: str, device: torch.device) -> None:
    """Raises RuntimeError where no compiled kernel serves tensors on ``device``."""
    if device.type in ("cpu", "meta") or (device.type == "cuda" and not CUDA_MISSING):
        return
    if device.type == "cuda":
        raise RuntimeError(f"cpfast.ops.{op}: {argument} is on {device}, but {CUDA_MISSING}")
    raise RuntimeError(
        f"cpfast.ops.{op}: {argument} is on {device}, but the ops run on cpu and cuda: "
        "move it, or set CPFAST_BACKEND=reference"
    )
