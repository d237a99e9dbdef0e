"""Layer rotation of a model: how far each layer's weights have turned from their initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cpfast import ops

__all__ = ["LayerRotation", "is_weight"]


def is_weight(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a convolution or dense kernel: it has two or more dimensions.

    Biases and the parameters of normalisation layers have one. (Embeddings have two, and count.)
    These are the layers over which arXiv 2506.15954 averages.
    """
    return parameter.dim() >= 2


class LayerRotation:
    """Snapshots the weights of a model, and measures how far they rotate away from them.

    The snapshot is float32 (float64 for float64 weights), lies beside the weights on their
    device, and costs their memory once more.

    Args:
        model: any module; its weights may change dtype or storage later, not shape or device.
        include: ``include(name, parameter) -> bool`` chooses the layers, by default
            :func:`is_weight`.

    Raises:
        ValueError: where ``include`` chooses no parameter.

    Source: arXiv 1806.01603; used as a signal in arXiv 2506.15954.
    """

    def __init__(
        self, model: nn.Module, include: Callable[[str, Tensor], bool] = is_weight
    ) -> None:
        chosen = [name for name, p in model.named_parameters() if include(name, p)]
        if not chosen:
            raise ValueError(
                f"model: include chooses none of the {len(list(model.parameters()))} parameters "
                f"of {type(model).__name__}"
            )
        self.names: list[str] = chosen
        # Owners rather than parameters, which load_state_dict(assign=True) and others replace.
        self._owners = [
            (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name in chosen
        ]
        self.reset()

    def _params(self) -> list[Tensor]:
        return [getattr(module, attribute) for module, attribute in self._owners]

    @torch.no_grad()
    def reset(self) -> None:
        """Takes the current weights as the new reference."""
        self._refs = [_widened(p) for p in self._params()]
        self._measure_refs()

    def _measure_refs(self) -> None:
        # Squares and sums in float64, layer by layer: once in a training, and exact.
        self._sq_norms = torch.stack([r.double().square().sum() for r in self._refs])
        self._latest: Tensor | None = None

    def update(self) -> Tensor:
        """Measures now: [L] float32 on the device of the weights, without synchronising.

        Raises:
            RuntimeError: where a weight has changed its shape or its device.
        """
        self._latest = ops.layer_rotation(self._params(), self._refs, self._sq_norms)
        return self._latest

    def _measured(self) -> Tensor:
        return self.update() if self._latest is None else self._latest

    def mean(self) -> Tensor:
        """Unweighted mean over the layers at the last :meth:`update`: [] float32, on the device."""
        return self._measured().mean()

    def compute(self) -> dict[str, float]:
        """Cosine distance per layer at the last :meth:`update`. Synchronises, alone of all."""
        return dict(zip(self.names, self._measured().tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The names, the snapshot and the last measurement."""
        return {
            "names": list(self.names),
            "refs": [r.clone() for r in self._refs],
            "latest": None if self._latest is None else self._latest.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: where the snapshot is of other layers; nothing is changed then.
        """
        if list(state["names"]) != self.names:
            raise ValueError(
                f"state_dict['names']: a snapshot of {len(state['names'])} layers "
                f"{list(state['names'])[:3]}... does not fit the model's {len(self.names)} "
                f"layers {self.names[:3]}..."
            )
        if len(state["refs"]) != len(self._refs):
            raise ValueError(
                f"state_dict['refs']: expected {len(self._refs)} tensors, got {len(state['refs'])}"
            )
        for name, saved, ref in zip(self.names, state["refs"], self._refs, strict=True):
            if saved.shape != ref.shape:
                raise ValueError(
                    f"state_dict['refs']: {name}: expected shape {tuple(ref.shape)}, "
                    f"got {tuple(saved.shape)}"
                )
        with torch.no_grad():
            for saved, ref in zip(state["refs"], self._refs, strict=True):
                ref.copy_(saved)
        self._measure_refs()
        latest = state["latest"]
        if latest is not None:
            self._latest = latest.to(self._sq_norms.device, copy=True)


def _widened(parameter: Tensor) -> Tensor:
    # Keeping the strides lets the kernel walk weight and snapshot side by side.
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return parameter.detach().to(dtype, copy=True, memory_format=torch.preserve_format)
