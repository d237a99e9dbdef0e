"""What is added up over an epoch's steps, on the device, in tensors that stay where they are: so
that a step that was captured in a CUDA graph adds to them too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from cpfast import ops
from cpfast.detection.criterion import Gradients, Paths
from cpfast.rotation import LayerRotation

__all__ = ["GradientSums", "Hits", "Walk"]


class Walk:
    """The way of the weights: one pass over them and one copy a step."""

    def __init__(self, rotation: LayerRotation) -> None:
        self._rotation = rotation
        weights = rotation.weights()
        self._before = [weight.detach().clone() for weight in weights]
        self._first = [weight.detach().clone() for weight in weights]
        self._steps = torch.zeros(len(weights), dtype=torch.float64, device=rotation.device)
        self._plan(weights)

    def _plan(self, weights: list[Tensor]) -> None:
        self._step_plan = ops.LayerPlan(weights, self._before)
        self._epoch_plan = ops.LayerPlan(weights, self._first)

    def begin(self) -> None:
        weights = self._rotation.weights()
        if not self._step_plan.is_current(weights):
            self._plan(weights)
        torch._foreach_copy_(self._before, weights)
        torch._foreach_copy_(self._first, weights)
        self._steps.zero_()

    def tensors(self) -> list[Tensor]:
        """What the epoch has shown so far, in place."""
        return [*self._before, *self._first, self._steps]

    def add_step(self) -> None:
        self._steps += self._step_plan.layer_statistics().l2_distance.double().square()
        torch._foreach_copy_(self._before, self._rotation.weights())

    def paths(self, steps: int) -> Paths:
        displacement = self._epoch_plan.layer_statistics().l2_distance.double().square()
        return Paths(displacement, self._steps.clone(), steps)


class GradientSums:
    """The gradients of an epoch: one norm of each parameter's and one addition to each layer's sum
    a step, and a copy of the weights' size.

    Args:
        optimizer: whose learning rates and parameters count; None: all of the model's, at 1.
        scaled: gradients that overflowed are left out, as GradScaler leaves out their steps.
    """

    def __init__(
        self, rotation: LayerRotation, optimizer: Optimizer | None, *, scaled: bool = False
    ) -> None:
        self._rotation = rotation
        self._optimizer = optimizer
        self._scaled = scaled
        self._sums = [
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for weight in rotation.weights()
        ]
        self._decrease = torch.zeros((), dtype=torch.float64, device=rotation.device)

    def begin(self) -> None:
        torch._foreach_zero_(self._sums)
        self._decrease.zero_()

    def tensors(self) -> list[Tensor]:
        """What the epoch has shown so far, in place."""
        return [*self._sums, self._decrease]

    def add_step(self) -> None:
        decrease = torch.zeros_like(self._decrease)
        for rate, parameters in self._groups():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norms = torch.stack(torch._foreach_norm(gradients))
                decrease += rate * norms.double().square().sum()
        weights = self._rotation.weights()
        pairs = [
            (s, w.grad) for s, w in zip(self._sums, weights, strict=True) if w.grad is not None
        ]
        if not pairs:
            raise RuntimeError(
                "ModelProbe: no layer has a gradient after a step: call after_step() before "
                "zero_grad(); sharded and computed weights have none of their own"
            )
        sums, added = [s for s, _ in pairs], [g for _, g in pairs]
        if self._scaled:
            whole = decrease.isfinite()
            decrease = torch.where(whole, decrease, 0.0)
            added = [torch.where(whole, g, 0.0) for g in added]
        torch._foreach_add_(sums, added)
        self._decrease += decrease

    def _groups(self) -> list[tuple[float | Tensor, list[Tensor]]]:
        if self._optimizer is None:
            return [(1.0, list(self._rotation.model.parameters()))]
        return [(group["lr"], group["params"]) for group in self._optimizer.param_groups]

    def gradients(self, steps: int) -> Gradients:
        self._rotation.weights()  # who has a gradient now
        norms = torch.stack(torch._foreach_norm(self._sums)).double()
        live = self._rotation.of_live(torch.arange(len(norms), device=norms.device))
        of_layers = torch.full_like(norms, torch.nan)
        of_layers[live] = norms[live]
        return Gradients(of_layers, self._decrease / steps)


class Hits:
    """How many of the samples that were trained on were classified correctly."""

    def __init__(self, device: torch.device) -> None:
        # hits, and all
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)

    def begin(self) -> None:
        self._counts.zero_()

    def tensors(self) -> list[Tensor]:
        """What the epoch has shown so far, in place."""
        return [self._counts]

    def add(self, logits: Tensor, target: Tensor) -> None:
        self._counts[0] += (logits.argmax(-1) == target).sum()
        self._counts[1] += target.numel()

    def share(self) -> Tensor:
        counts = self._counts.double()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)  # or each process would judge by its own samples
        hits, count = counts.unbind()
        return hits / count
