"""IES: samples whose loss no longer changes its pace are left out, and looked at once an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.moment import Moment
from cpfast.pruning.policy import Chosen, Draw, Policy, Samples, policies

__all__ = ["Ies"]


@policies.register("ies", source="tmllab/2025_ICLR_IES, cifar_main.py")
class Ies(Policy):
    """Leaves out samples whose loss has second differences of less than ``tau`` in the mean.

    The mean is over the absolute values of the last three, l_t - 2 l_(t-1) + l_(t-2), and nothing
    is left out before there are four (six epochs). Those that are left out are scored by a forward
    pass in evaluation mode after each epoch, and return when their loss moves. Where all would be
    left out, all are trained on (the released code keeps the last selection). ``keep`` plays no
    part. The paper's tau is 1e-3, for CIFAR-100 2e-3.

    Raises:
        ValueError: for a negative tau.
    """

    def __init__(self, tau: float = 1e-3) -> None:
        if not tau >= 0:
            raise ValueError(f"tau: expected 0 or more, got {tau}")
        self.tau = tau

    def state(self, size: int, device: torch.device) -> dict[str, Tensor]:
        return {f"loss{i}": torch.full((size,), torch.inf, device=device) for i in range(1, 6)}

    def update(self, samples: Samples, moment: Moment) -> None:
        """loss1 becomes that of the epoch that has ended."""
        state = samples.state
        for i in (5, 4, 3, 2):
            state[f"loss{i}"].copy_(state[f"loss{i - 1}"])
        state["loss1"].copy_(samples.columns["loss"])

    def is_full(self, moment: Moment) -> bool:
        return moment.epoch < 6

    def select(self, samples: Samples, moment: Moment, keep: float, draw: Draw) -> Chosen:
        losses = torch.stack([samples.state[f"loss{i}"] for i in range(1, 6)])
        changes = (losses[:-2] - 2 * losses[1:-1] + losses[2:]).abs().mean(0)
        is_settled = changes < self.tau  # NaN is not
        mask = ~is_settled | is_settled.all()
        return Chosen.of(mask, rescored=~mask)
