"""Pretrained weights: what of a safetensors file fits a network begins from there."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from cpfast.train.errors import UserError, first_line
from cpfast.train.inputs import PREFIX

SHOWN = 4  # names


@torch.no_grad()
def load(model: nn.Module, path: str) -> str:
    """Copy what has the same name and shape; returns what did not, in words.

    Layers of another size, as the head for other classes, stay as they are.

    Raises:
        UserError: the file cannot be read, or nothing in it fits.
    """
    try:
        tensors = safetensors.torch.load(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--weights {path}: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"--weights {path}: no safetensors file ({first_line(error)})") from error
    tensors = {k: v for k, v in tensors.items() if not k.startswith(PREFIX)}
    own = model.state_dict()
    fitting = [k for k, v in own.items() if k in tensors and v.shape == tensors[k].shape]
    if not any(own[name].is_floating_point() for name in fitting):
        raise UserError(
            f"--weights {path}: nothing in it fits the model, which has {_shown(list(own))}; the "
            f"file has {_shown(list(tensors))}"
        )
    for name in fitting:
        own[name].copy_(tensors[name])
    parts = [
        ("of another size, left new", [k for k in own if k in tensors and k not in fitting]),
        ("not in the file, left new", [k for k in own if k not in tensors]),
        ("not in the model", [k for k in tensors if k not in own]),
    ]
    told = [f"{what}: {_shown(names)}" for what, names in parts if names]
    return "; ".join([f"{len(fitting)} of {len(own)} tensors from {path}", *told])


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN] + [f"... ({len(names)})"] * (len(names) > SHOWN))
