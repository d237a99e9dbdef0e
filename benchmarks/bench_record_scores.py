"""Scores of a batch into the table of all samples, the last of equal indices winning."""

import pytest
import torch
from harness import input_sets

from cpfast import ops, reference


def put(scores, index, values):
    scores[index] = values


@pytest.mark.parametrize("batch", [128, 8192])
def bench_record_scores(race, device, batch):
    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        index = torch.randint(50_000, (batch,), generator=g, device=device)
        return torch.zeros(50_000, device=device), index, torch.randn(batch, device=device)

    contenders = {
        "cpfast": ops.record_scores,
        "scores[index] = values, any of equal indices": put,
        "twin": reference.record_scores,
    }
    # A value and an index of 8 bytes read, and a score written, each of 4.
    size = 16 * batch
    race("record_scores", f"B = {batch:,}", contenders, input_sets(make, size, device), size)
