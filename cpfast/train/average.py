"""Which weights a run is judged by and keeps: those of the moment, or a moving average of them.

The average is the exponentially weighted mean of the weights after all steps so far,

    (1 - d) sum_i d^(n - i) w_i / (1 - d^n),

which begins at zero and is corrected for that as Adam's are (1412.6980, section 3), so that a short
training does not end with a share of the weights that it began with. It is what
`torch.optim.swa_utils` calculates, but for the correction. Running statistics, as BatchNorm's, are
averaged as the weights are; integers beside them are those of the moment.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cpfast.forms import check

__all__ = ["Latest", "MovingAverage", "of"]


class Latest:
    """The weights of the moment.

    Args:
        model: whose weights change in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def step(self) -> None:
        """After the optimizer's."""

    def model(self) -> nn.Module:
        """With the weights to be evaluated; in whatever mode."""
        return self._model

    def buffers(self) -> list[Tensor]:
        """What has averaged running statistics, of which each process has seen its part."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {}, "average")


class MovingAverage(Latest):
    """The exponential moving average, by tensors that stay where they are: `step` can be captured
    in a CUDA graph.

    Args:
        decay: d, of a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._decay = decay
        self._update = get_ema_multi_avg_fn(decay)
        self._live = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self._sums = {name: torch.zeros_like(value) for name, value in self._live.items()}
        self._steps = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)

    @torch.no_grad()
    def step(self) -> None:
        self._update(list(self._sums.values()), list(self._live.values()), self._steps)
        self._steps += 1

    @torch.no_grad()
    def model(self) -> nn.Module:
        """A copy; before the first step of the weights as they are."""
        averaged = copy.deepcopy(self._model)
        if not self._steps:
            return averaged
        # in float64, for 1 - d^n is small when d is near to 1
        share = -torch.expm1(self._steps.double() * torch.tensor(self._decay).double().log())
        for name, value in averaged.state_dict().items():
            if name in self._sums:
                value.copy_(self._sums[name] / share)
        return averaged

    def buffers(self) -> list[Tensor]:
        names = {name for name, _ in self._model.named_buffers()}
        return [value for name, value in self._sums.items() if name in names]

    def state_dict(self) -> dict[str, Any]:
        sums = {name: value.clone() for name, value in self._sums.items()}
        return {"sums": sums, "steps": self._steps.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: it is of another model.
        """
        check(state, self.state_dict(), "average")
        for name, value in self._sums.items():
            value.copy_(state["sums"][name])
        self._steps.copy_(state["steps"])


def of(decay: float | None, model: nn.Module) -> Latest:
    """By --ema; None: the weights of the moment."""
    return Latest(model) if decay is None else MovingAverage(model, decay)
