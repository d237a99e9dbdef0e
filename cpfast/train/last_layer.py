"""Whether a training takes the last layer together with the loss, or forms whole logits."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from cpfast.ops._logit_chunks import computed_in
from cpfast.train.batches import AUTOCAST
from cpfast.train.config import Config
from cpfast.train.data import Data
from cpfast.train.models.head import WithHead

# Different tokens. With 4,096 rows of width 192 in float32 on one core, chunks took 1.5 times as
# long as whole logits with 56 of them, 1.1 times with 512, and .93 times with 1,000
# (benchmarks/results/last-layer-cpu.json).
FEW = 512
_NEED_LOGITS = {"accuracy"}  # of what criteria ask the probe for


def together(config: Config, data: Data, model: nn.Module, needs: Collection[str]) -> bool:
    """Whether the training's steps and evaluations never hold whole logits.

    Args:
        needs: of the criteria.
    """
    return (
        isinstance(model, WithHead)
        and data.reads == "text"
        and not _NEED_LOGITS & set(needs)
        and pays(data.outputs, AUTOCAST[config.precision], torch.device(config.device))
    )


def pays(vocabulary: int, dtype: torch.dtype, device: torch.device) -> bool:
    """By the number of different tokens; and where a CPU has no products in the step's dtype, for
    the loss computes in float32 then, and a linear layer emulates them."""
    return vocabulary > FEW or computed_in(dtype, device) != dtype
