"""Layca: an optimizer's steps as rotations of the layers, of an angle that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cpfast import layers
from cpfast.arguments import check_type, typed
from cpfast.forms import Open, check

__all__ = ["Layca"]

_CLOSURE = Callable[..., Any] | None


class Layca:
    """Turns each layer by as much as the learning rate says, whatever the optimizer's step is.

    Of the step that the optimizer makes, the part along the layer's weights w is left out; what is
    left, s, is scaled to their norm, and they keep the norm that they began with::

        w <- w + lr |w| s / |s|,    w <- w |w0| / |w|

    So each step turns each layer by arctan(lr). Parameters that are no weights of a layer
    (:func:`cpfast.is_weight`), such as biases and those of normalisation, and weights that begin
    as zeros, get the optimizer's own step. A layer that the optimizer leaves where it is, for want
    of a gradient, or moves along its weights alone, is not turned.

    The optimizer's step is read off the weights: where it is below 1e-6 of them, float32 keeps
    little of its direction. L2 weight decay pulls along the weights, so little of it is left.
    Schedulers take the optimizer itself, ``LambdaLR(layca.optimizer, ...)``;
    :class:`cpfast.schedules.FractionSchedule` takes either.

    Args:
        optimizer: over the parameters of ``model``, its learning rates in radians per step; any
            that makes one step from one gradient (SGD, Adam, ...).
        model: whose layers are turned, so far as the optimizer has their weights.

    Attributes:
        optimizer: as given.
        names: of the layers that are turned, in the order of :attr:`norms`.
        norms: [L] float32, what their weights' norms are kept at.

    Raises:
        ValueError: the optimizer has no weight of a layer of the model.
        RuntimeError: for sharded weights, of which no process has the norm.

    Source: Carbonnelle & De Vleeschouwer, "Layer rotation" (arXiv 1806.01603), algorithm 1.
    """

    @typed
    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        kernels = {id(weight) for weight in layers.kernels(model)}
        found = [
            (name, p) for name, p in model.named_parameters() if id(p) in kernels and id(p) in known
        ]
        if not found:
            raise ValueError("optimizer: expected one over the model's weights, got none of them")
        for name, weight in found:
            layers.check_materialised(name, weight)
            if layers.is_sharded(weight):
                raise RuntimeError(f"Layca: {name}: is sharded, so no process has its norm")
        self.names = layers.plain_names([name for name, _ in found])
        self._weights = [weight for _, weight in found]
        with torch.no_grad():
            self.norms = torch.stack([_norm(weight) for weight in self._weights])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, without waiting for the device; returns what the optimizer's returns."""
        check_type("closure", closure, _CLOSURE)
        before = [weight.detach().clone() for weight in self._weights]
        result = self.optimizer.step(closure)
        rates = {
            id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]
        }
        with torch.no_grad():
            for weight, old, norm in zip(self._weights, before, self.norms, strict=True):
                weight.copy_(_turned(old, weight, rates[id(weight)], norm))
        return result

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and the norms."""
        return {"optimizer": self.optimizer.state_dict(), "norms": self.norms.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: it is of other layers, or the optimizer refuses its part.
        """
        like = torch.empty(self.norms.shape)
        check(state, Open({"optimizer": dict, "norms": like}), "state_dict")
        self.optimizer.load_state_dict(state["optimizer"])
        self.norms.copy_(state["norms"])


def _norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dtype=torch.float32)


def _turned(old: Tensor, new: Tensor, rate: float | Tensor, norm: Tensor) -> Tensor:
    """`old`, turned by arctan(rate) towards `new`, of the given norm."""
    w = old.float()
    step = new.float() - w
    square = w.square().sum()
    step = step - (step * w).sum() / square * w
    length = _norm(step)
    turned = w + step * (rate * square.sqrt() / length)
    turned = turned * (norm / _norm(turned))
    # 0 / 0 where nothing is left of the step, or the weights have no direction
    turned = torch.where(length > 0, turned, w)
    return torch.where((norm > 0) & (square > 0), turned, new.float())
