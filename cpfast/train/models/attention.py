"""The pre-norm block of transformers: attention, then two dense layers, each beside a shortcut.

torch's fused attention is deterministic in its forward pass. Its backward pass on CUDA is so
under `torch.use_deterministic_algorithms(True)` alone: with `warn_only=True` it only warns, and
`cudnn.deterministic` does not reach it (pytorch:aten/src/ATen/native/transformers/cuda/
attention_backward.cu).
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """[N, T, D] -> [N, T, D]; with `causal`, position t sees positions up to t alone."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm2, self.expand = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attended(self._attention(self.norm1(x)))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        # [N, T, 3D] -> three of [N, heads, T, D / heads]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x.transpose(1, 2).flatten(2)


def init_transformer(model: nn.Module, depth: int) -> None:
    """Normal kernels of standard deviation .02, zero biases.

    What is added to the shortcut is scaled by 1 / sqrt(2 depth), so that its variance does not
    grow with depth (GPT-2). No kernel starts at zero: it would have no direction to turn from.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            added = name.endswith(("attended", "contract"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if added else 0.02)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
