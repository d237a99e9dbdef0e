"""One epoch's selection, against the twin and against numpy, as InfoBatch does it and better."""

import numpy as np
import pytest
import torch
from harness import input_sets, too_big

from cpfast import ops, reference

KEEP = 0.5
BATCH = 512
SAMPLES = [50_000, 1_280_000, 100_000_000, 1_000_000_000]


def infobatch_selection(scores):
    """As its authors do it: the legacy generator, and Python lists of what is left."""
    rng = np.random.RandomState(0)
    scores = scores.cpu().numpy()
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
    scores = scores.cpu().numpy()
    below = scores < scores.mean()
    low = np.flatnonzero(below)
    chosen = rng.choice(low, int(KEEP * len(low)), replace=False)
    weights = np.ones(len(scores), dtype=np.float32)
    weights[chosen] = 1 / KEEP
    indices = np.concatenate([np.flatnonzero(~below), chosen])
    rng.shuffle(indices)
    return indices, weights


def torch_selection(scores, *, shuffle=True):
    below = scores < scores.mean()
    low = below.nonzero()[:, 0]
    drawn = torch.randperm(len(low), device=scores.device)[: int(KEEP * len(low))]
    chosen = low[drawn]
    weights = torch.ones_like(scores)
    weights[chosen] = 1 / KEEP
    indices = torch.cat([(~below).nonzero()[:, 0], chosen])
    if shuffle:
        indices = indices[torch.randperm(len(indices), device=scores.device)]
    return indices, weights


def select(**options):
    return lambda scores: ops.select_samples(scores, keep=KEEP, seed=0, epoch=1, **options)


def same_count(ours, theirs):
    count = int(ours.count)
    found = theirs.count if hasattr(theirs, "weights") else len(theirs[0])
    # A Bernoulli subset's size varies by a root of it.
    assert abs(int(found) - count) < 0.01 * count, f"selects {int(found)} samples, not {count}"


def to_the_first_batch(**options):
    """What an epoch costs before it can begin: the order is stored nowhere."""

    def run(scores):
        selection = ops.select_samples(scores, keep=KEEP, seed=0, epoch=1, **options)
        ops.shuffled_slice(selection.indices, selection.count, 0, BATCH, seed=0, epoch=1)
        return selection

    return run


CPFAST = {
    "cpfast": to_the_first_batch(),
    "cpfast, order written out": select(shuffle=True),
    "cpfast, ascending": select(),
    "cpfast, Bernoulli": to_the_first_batch(subset="bernoulli"),
    "cpfast, int32": to_the_first_batch(dtype=torch.int32),
}
RIVALS = {
    "torch": torch_selection,
    "torch, ascending": lambda s: torch_selection(s, shuffle=False),
    "numpy at its best": numpy_selection,
}
SLOW_RIVALS = {
    "numpy as InfoBatch": infobatch_selection,
    "twin": lambda s: reference.select_samples(s, keep=KEEP, seed=0, epoch=1, shuffle=True),
}


@pytest.mark.parametrize("samples", SAMPLES, ids=["50k", "1.28M", "1e8", "1e9"])
def bench_select_samples(race, device, samples):
    # Scores, int64 indices and weights; the permutation's work is on top, rivals' as well.
    reason = too_big(24 * samples, device)
    if reason:
        pytest.skip(reason)

    def make(seed):
        g = torch.Generator(device).manual_seed(seed)
        return (torch.rand(samples, generator=g, device=device),)

    sets = input_sets(make, 4 * samples, device)
    rivals = RIVALS | (SLOW_RIVALS if samples <= 10_000_000 else {})
    race(
        "select_samples",
        f"N = {samples:,}",
        CPFAST | rivals,
        sets,
        # Scores read for their mean and again to compare; three quarters of the indices written.
        8 * samples + 8 * (3 * samples // 4),
        agree=lambda ours, theirs: (
            None if "Bernoulli" in repr(theirs) else same_count(ours, theirs)
        ),
        temporaries=dict.fromkeys(RIVALS, 40 * samples),
    )
