"""Measures a model for the criteria: once an epoch, or after each step, on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from cpfast import ops
from cpfast.detection.criterion import Paths
from cpfast.rotation import LayerRotation

__all__ = ["ModelProbe", "path_null"]


class ModelProbe:
    """Measures the layers that ``rotation`` watches, and the samples' losses.

    Call :meth:`begin` before an epoch's first step and, with ``per_step``, :meth:`after_step` after
    each, which may be captured in a CUDA graph; then what an epoch showed can be asked for.

    Args:
        rotation: of the model.
        losses: returns the samples' last losses, [N] float32, such as
            ``lambda: pruner.scores``; None: there is no ``rank_stability``.
        optimizer: whose momentum :meth:`path_null` takes into account.
        per_step: measure :meth:`paths`, for which two more copies of the weights are kept.
    """

    def __init__(
        self,
        rotation: LayerRotation,
        *,
        losses: Callable[[], Tensor] | None = None,
        optimizer: Optimizer | None = None,
        per_step: bool = False,
    ) -> None:
        self._rotation = rotation
        self._losses = losses
        self._optimizer = optimizer
        self._seen: dict[str, Tensor] = {}
        self._ranks: Tensor | None = None  # an epoch ago
        self._walk = _Walk(rotation) if per_step else None
        self._steps = 0

    @torch.no_grad()
    def begin(self, steps: int) -> None:
        """Forgets the last epoch; the next has so many steps."""
        self._seen.clear()
        self._steps = steps
        if self._walk is not None:
            self._walk.begin()

    @torch.no_grad()
    def after_step(self) -> None:
        """Measures a step; without ``per_step``, nothing."""
        if self._walk is not None:
            self._walk.add_step()

    @torch.no_grad()
    def rotation(self) -> Tensor:
        """Of the layers that have a gradient: what is frozen does not turn."""
        return self._rotation.of_live(self.all_rotations())

    @torch.no_grad()
    def all_rotations(self) -> Tensor:
        """As ``rotation.names`` has them: [L] float32."""
        return self._once("rotation", self._rotation.update)

    @torch.no_grad()
    def paths(self) -> Paths:
        """
        Raises:
            RuntimeError: without ``per_step``.
        """
        if self._walk is None:
            raise RuntimeError(
                "ModelProbe: paths need per_step=True, and after_step() in each step"
            )
        displacement = self._once("displacement", self._walk.displacement)
        return Paths(displacement, self._walk.steps.clone(), self._steps)

    def path_null(self) -> float:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        group = groups[0] if groups else {}
        momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
        return path_null(float(momentum), self._steps, nesterov=bool(group.get("nesterov")))

    @torch.no_grad()
    def rank_stability(self) -> Tensor:
        """
        Raises:
            RuntimeError: without ``losses``.
        """
        return self._once("rank_stability", self._rank_stability)

    def _rank_stability(self) -> Tensor:
        if self._losses is None:
            raise RuntimeError("ModelProbe: rank_stability needs losses=")
        ranks = _ranks(self._losses())
        before, self._ranks = self._ranks, ranks
        if before is None:
            return torch.full((), torch.nan, dtype=torch.float64, device=ranks.device)
        return _correlation(before.double(), ranks.double())

    def _once(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        if name not in self._seen:
            self._seen[name] = measure()
        return self._seen[name]

    def state_dict(self) -> dict[str, Any]:
        """What the next epoch is compared with."""
        return {"ranks": None if self._ranks is None else self._ranks.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, between two epochs.

        Raises:
            ValueError: where it is not that of a probe.
        """
        ranks = state["ranks"]
        if ranks is not None and (ranks.dim() != 1 or ranks.dtype != torch.int32):
            raise ValueError(
                f"state_dict['ranks']: expected [N] int32, got {tuple(ranks.shape)} {ranks.dtype}"
            )
        device = self._rotation.device
        self._ranks = None if ranks is None else ranks.to(device, copy=True)
        self._seen.clear()


class _Walk:
    """The steps of an epoch: one pass over the weights and one copy a step."""

    def __init__(self, rotation: LayerRotation) -> None:
        self._rotation = rotation
        weights = rotation.weights()
        self._before = [weight.detach().clone() for weight in weights]
        self._first = [weight.detach().clone() for weight in weights]
        self.steps = torch.zeros(len(weights), dtype=torch.float64, device=rotation.device)
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
        self.steps.zero_()

    def add_step(self) -> None:
        self.steps += self._step_plan.layer_statistics().l2_distance.double().square()
        torch._foreach_copy_(self._before, self._rotation.weights())

    def displacement(self) -> Tensor:
        return self._epoch_plan.layer_statistics().l2_distance.double().square()


@functools.cache
def path_null(momentum: float, steps: int, *, nesterov: bool = False) -> float:
    """E |w_n - w_0|^2 / E sum of |w_(t+1) - w_t|^2 over n steps of SGD on independent noise.

    A step is a sum over earlier gradients with the coefficients c_j = m^j; with Nesterov's
    momentum 1 + m, m^2, m^3 .... For n to infinity and without Nesterov it is (1 + m) / (1 - m).
    """
    if steps == 0:
        return math.nan
    if momentum == 0:
        return 1.0
    # Coefficients beyond this are below 1e-12 of the first.
    length = min(math.ceil(-12 * math.log(10) / math.log(momentum)) + 1, 100_000)
    coefficients = momentum ** np.arange(length, dtype=np.float64)
    if nesterov:
        coefficients *= momentum
        coefficients[0] = 1 + momentum
    spectrum = np.abs(np.fft.rfft(coefficients, 2 * length)) ** 2
    covariance = np.fft.irfft(spectrum, 2 * length)[: min(length, steps)]
    lags = np.arange(1, len(covariance))
    later = ((1 - lags / steps) * covariance[1:]).sum()
    return float((covariance[0] + 2 * later) / covariance[0])


def _ranks(values: Tensor) -> Tensor:
    """[N] int32, equal values in the order of their places."""
    order = values.argsort(stable=True)
    ranks = torch.empty_like(order, dtype=torch.int32)
    ranks[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    return ranks


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()
