"""Other people's kernels, each imported where it is installed, or named as not installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

DISTRIBUTIONS = {
    "liger-kernel": "liger_kernel",
    "apex": "apex",
    "quack-kernels": "quack",
    "flash-attn": "flash_attn",
    "scipy": "scipy",
    "numpy": "numpy",
}


def installed() -> dict[str, str]:
    """Version of each rival's package, or "not installed"."""
    versions = {}
    for distribution, module in DISTRIBUTIONS.items():
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found = importlib.util.find_spec(module) is not None
            versions[distribution] = "no version" if found else "not installed"
    return versions


def optional(path: str, device: str, use: Callable[[Any], Callable[..., Any]]) -> Any:
    """``use`` of the object at ``module:name``, or why there is none."""
    module, name = path.split(":")
    if device != "cuda":
        return "needs a GPU"
    try:
        return use(getattr(importlib.import_module(module), name))
    except ModuleNotFoundError as error:
        return f"not installed ({error.name})"
    except Exception as error:
        # Versions that do not fit this torch or this GPU fail in many ways at import.
        return f"cannot be imported ({type(error).__name__}: {str(error)[:120]})"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By torch.compile, for the shapes of this case alone."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def cross_entropies(device: str) -> dict[str, Any]:
    """Mean losses of logits [N, C] and targets [N], forward and backward fused by others."""
    return {
        "Liger": optional(
            "liger_kernel.transformers.functional:liger_cross_entropy",
            device,
            lambda f: lambda x, y: f(x, y),
        ),
        "Apex": optional(
            "apex.contrib.xentropy:SoftmaxCrossEntropyLoss",
            device,
            # Its padding_idx is what torch calls ignore_index, and 0 by default.
            lambda f: lambda x, y: f.apply(x, y, 0.0, -100, True).mean(),
        ),
        "QuACK": optional(
            "quack.cross_entropy:cross_entropy",
            device,
            lambda f: lambda x, y: f(x, y, reduction="mean"),
        ),
        "flash-attn": optional(
            "flash_attn.ops.triton.cross_entropy:cross_entropy_loss",
            device,
            lambda f: lambda x, y: f(x, y)[0].mean(),
        ),
    }


def apex_norms(device: str) -> Any:
    """norms(tensors) -> [L] by Apex' multi-tensor kernel, or why not."""

    def use(multi_tensor_l2norm: Any) -> Callable[..., Any]:
        from apex.multi_tensor_apply import multi_tensor_applier

        overflow = torch.zeros(1, dtype=torch.int, device=device)
        return lambda tensors: multi_tensor_applier(multi_tensor_l2norm, overflow, [tensors], True)[
            1
        ]

    return optional("amp_C:multi_tensor_l2norm", device, use)
