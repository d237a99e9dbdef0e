"""Scores of a batch into the table of all samples, the last of equal indices winning."""

import pytest
import torch

from cpfast import ops, reference

CONTENDERS = {"cpfast": ops.record_scores, "twin": reference.record_scores}


@pytest.mark.parametrize("batch", [128, 8192])
@pytest.mark.parametrize("contender", CONTENDERS)
def bench_record_scores(race, batch, contender):
    g = torch.Generator().manual_seed(0)
    scores = torch.zeros(50_000)
    index = torch.randint(50_000, (batch,), generator=g)
    values = torch.randn(batch, generator=g)
    race(
        "record_scores",
        f"B = {batch:,}",
        contender,
        lambda: CONTENDERS[contender](scores, index, values),
    )
