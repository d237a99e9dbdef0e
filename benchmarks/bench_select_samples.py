"""One epoch's selection, against the twin and against numpy, as InfoBatch does it and better."""

import numpy as np
import pytest
import torch

from cpfast import ops, reference

KEEP = 0.5


def infobatch_selection(scores):
    """As its authors do it: the legacy generator, and Python lists of what is left."""
    rng = np.random.RandomState(0)
    below = scores < scores.mean()
    low = np.where(below)[0]
    remaining = np.where(~below)[0].tolist()
    weights = np.ones(len(scores), dtype=np.float32)
    chosen = rng.choice(low, int(KEEP * len(low)), replace=False)
    weights[chosen] = 1 / KEEP
    remaining.extend(chosen)
    rng.shuffle(remaining)
    return remaining, weights


def numpy_selection(scores):
    """The same with numpy's newer generator, and arrays throughout."""
    rng = np.random.default_rng(0)
    below = scores < scores.mean()
    low = np.flatnonzero(below)
    chosen = rng.choice(low, int(KEEP * len(low)), replace=False)
    weights = np.ones(len(scores), dtype=np.float32)
    weights[chosen] = 1 / KEEP
    indices = np.concatenate([np.flatnonzero(~below), chosen])
    rng.shuffle(indices)
    return indices, weights


CONTENDERS = {
    "cpfast": lambda s: ops.select_samples(s, keep=KEEP, seed=0, epoch=1, shuffle=True),
    "twin": lambda s: reference.select_samples(s, keep=KEEP, seed=0, epoch=1, shuffle=True),
    "numpy as InfoBatch": lambda s: infobatch_selection(s.numpy()),
    "numpy at its best": lambda s: numpy_selection(s.numpy()),
}


@pytest.mark.parametrize("samples", [50_000, 1_280_000])
@pytest.mark.parametrize("contender", CONTENDERS)
def bench_select_samples(race, samples, contender):
    scores = torch.rand(samples, generator=torch.Generator().manual_seed(0))
    race("select_samples", f"N = {samples:,}", contender, lambda: CONTENDERS[contender](scores))
