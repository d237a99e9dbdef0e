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
