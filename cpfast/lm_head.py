"""The last layer of a language model, with its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cpfast import ops
from cpfast.arguments import real, typed
from cpfast.results import ScoredLoss

__all__ = ["ScoredLMHead"]


class ScoredLMHead(nn.Linear):
    """A linear layer which, given the targets too, returns losses and scores in place of logits.

    The loss belongs into the layer's own forward pass where its weight is sharded: that is when
    FSDP has gathered it. Of the logits a chunk is held at a time
    (:func:`cpfast.ops.scored_linear_cross_entropy`).

    Args:
        in_features: D.
        out_features: V.
        bias: whether it has one.
        logit_scale: multiplies the product with the weight.
        softcap: c, where logits are c * tanh(x / c) of those; None: they are not.
        device, dtype: of the parameters.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a scale or cap that is not above 0.
    """

    @typed
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.logit_scale = _positive("logit_scale", logit_scale)
        self.softcap = None if softcap is None else _positive("softcap", softcap)

    @classmethod
    @typed
    def of(
        cls, linear: nn.Linear, *, logit_scale: float = 1.0, softcap: float | None = None
    ) -> ScoredLMHead:
        """One with the parameters of ``linear`` themselves, tied as they may be to an embedding.

        Raises:
            TypeError: for another layer, or one with hooks or a forward pass of its own, whose
                outputs nobody but it knows.
        """
        if type(linear) not in (nn.Linear, ScoredLMHead):
            raise TypeError(f"linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        hooks = [*linear._forward_hooks, *linear._forward_pre_hooks]
        if hooks or "forward" in vars(linear):
            raise TypeError("linear: has hooks or a forward pass of its own")
        head = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            logit_scale=logit_scale,
            softcap=softcap,
            device="meta",
        )
        head.weight, head.bias = linear.weight, linear.bias
        return head.train(linear.training)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, target: Tensor | None = None, **options: Any
    ) -> Tensor | ScoredLoss:
        """
        Args:
            hidden: [N, D] or [B, T, D]; without a target [..., D].
            target: [N] or [B, T], classes or ``ignore_index``.
            options: those of :func:`cpfast.ops.scored_linear_cross_entropy`.

        Returns:
            Losses and scores; without a target logits [..., V].
        """
        if target is not None:
            return ops.scored_linear_cross_entropy(
                hidden,
                self.weight,
                target,
                bias=self.bias,
                **{"logit_scale": self.logit_scale, "softcap": self.softcap, **options},
            )
        if options:
            raise TypeError(f"{next(iter(options))}: goes with a target")
        logits = super().forward(hidden * self.logit_scale if self.logit_scale != 1 else hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, logit_scale={self.logit_scale}, softcap={self.softcap}"


def _positive(name: str, value: float) -> float:
    number = real(name, value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name}: expected a finite positive number, got {value}")
    return number
