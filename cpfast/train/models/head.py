"""Networks whose last layer is linear, which a loss may take over."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["WithHead"]


class WithHead(nn.Module):
    """Its outputs are ``head(hidden(x))``, so that the last layer and the loss can be taken
    together (docs/loss.md).

    Attributes:
        head: the last layer.
    """

    head: nn.Linear

    def hidden(self, x: Tensor) -> Tensor:
        """What the last layer takes: [..., D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))
