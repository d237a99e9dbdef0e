"""A batch's scores into the table of all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from cpfast.reference._checks import check_range


@torch.no_grad()
def record_scores(scores: Tensor, index: Tensor, values: Tensor) -> None:
    end = len(scores)
    check_range("record_scores", "index", index, end, f"a sample in [0, {end})")
    # A stable sort keeps batch order among equal indices; the last of each run is written.
    ordered, position = index.sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    scores[ordered[last]] = values[position[last]]
