"""One epoch's plan under each policy, in multiples of infobatch's."""

import functools

import pytest
import torch
from harness import input_sets

import cpfast

EPOCH, EPOCHS, CLASSES = 50, 100, 1000


def pruner(policy, samples, seed, device):
    """With losses of another network's in every column, as after half of a training."""
    g = torch.Generator(device).manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=g, device=device)
    made = cpfast.DataPruner(
        samples, EPOCHS, policy, anneal=1.0, device=device, strict=None, labels=labels
    )
    made.plan(EPOCH - 1)
    first, *others = (
        torch.empty(samples, device=device).exponential_(generator=g).clamp(max=10)
        for _ in made.columns
    )
    named = dict(zip(list(made.columns)[1:], others, strict=True))
    if "correct" in named:
        named["correct"] = named["correct"].round().clamp(max=1)
    made.update(torch.arange(samples, device=device), first, **named)
    return made


@pytest.mark.parametrize("samples", [50_000, 1_280_000], ids=["50k", "1.28M"])
def bench_policies(race, device, samples):
    names = ["infobatch", *(name for name in cpfast.policies if name != "infobatch")]

    def make(seed):
        return ({name: pruner(name, samples, seed, device) for name in names},)

    def plan(name, pruners):
        """As plan() does, but nothing is kept: the same again each time."""
        one = pruners[name]
        chosen, _ = one._propose(one._asked(EPOCH, 1, True, None, None))
        return chosen.plan.batch(0, len(chosen.plan))

    # Losses read, and what a plan is made of written: indices and weights.
    size = 16 * samples
    race(
        "policies",
        f"N = {samples:,}; cpfast is infobatch",
        {
            "cpfast" if name == "infobatch" else f"cpfast, {name}": functools.partial(plan, name)
            for name in names
        },
        input_sets(make, size, device),
        size,
    )
