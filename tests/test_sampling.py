import warnings

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import cpfast

N = 101


def dataset():
    return TensorDataset(torch.arange(N) * 10, torch.arange(N) % 5)


def scored_pruner():
    pruner = cpfast.DataPruner(N)
    pruner.update(torch.arange(N), torch.rand(N, generator=torch.Generator().manual_seed(0)))
    return pruner


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_travel_with_their_samples(workers):
    pruner = scored_pruner()
    sampler = cpfast.PrunedSampler(pruner)
    loader = DataLoader(cpfast.IndexedDataset(dataset()), 16, sampler=sampler, num_workers=workers)
    sampler.set_epoch(1)
    seen = []
    for (x, y), index in loader:
        assert torch.equal(x, index * 10)
        assert torch.equal(y, index % 5)
        seen += index.tolist()
    assert seen == pruner.plan(1).tolist()
    assert len(seen) == len(sampler) < N


def test_data_sets_that_fetch_batches_still_do():
    calls = []

    class Batched(TensorDataset):
        def __getitems__(self, indices):
            calls.append(indices)
            return [self[i] for i in indices]

    loader = DataLoader(cpfast.IndexedDataset(Batched(torch.arange(6))), 3)
    assert [index.tolist() for _, index in loader] == [[0, 1, 2], [3, 4, 5]]
    assert calls == [[0, 1, 2], [3, 4, 5]]


def test_iterable_data_sets_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(TypeError, match="expected a map-style data set, got Stream"):
        cpfast.IndexedDataset(Stream())


def test_length_is_that_of_the_current_epoch():
    pruner = scored_pruner()
    sampler = cpfast.PrunedSampler(pruner)
    loader = DataLoader(cpfast.IndexedDataset(dataset()), 10, sampler=sampler)
    lengths = []
    for epoch in (0, 1, 199):
        sampler.set_epoch(epoch)
        assert len(loader) == sum(1 for _ in loader)
        lengths.append(len(sampler))
    assert lengths[0] == lengths[2] == N > lengths[1]
    sampler.set_epoch(2, repeats=3, prune=False)
    assert len(list(sampler)) == len(sampler) == 3 * N


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_plan_without_loss_or_overlap(ranks):
    pruner = scored_pruner()
    samplers = [cpfast.PrunedSampler(pruner, ranks, rank) for rank in range(ranks)]
    equal = [cpfast.PrunedSampler(pruner, ranks, rank, drop_last=True) for rank in range(ranks)]
    for sampler in samplers + equal:
        assert isinstance(sampler, DistributedSampler)
        sampler.set_epoch(1)
    shares = [list(sampler) for sampler in samplers]
    plan = pruner.plan(1).tolist()
    assert sorted(sum(shares, [])) == sorted(plan)
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {len(list(sampler)) for sampler in equal} == {len(plan) // ranks}


def test_an_epoch_iterated_again_is_warned_of():
    sampler = cpfast.PrunedSampler(scored_pruner())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(3):
            sampler.set_epoch(epoch)
            list(sampler)
    with pytest.warns(UserWarning, match="epoch 2 is iterated again.*call set_epoch"):
        list(sampler)


def test_before_set_epoch_it_stands_where_the_pruner_stands():
    pruner = scored_pruner()
    plan = pruner.plan(3, repeats=2)
    resumed = cpfast.DataPruner(N)
    sampler = cpfast.PrunedSampler(resumed)
    resumed.load_state_dict(pruner.state_dict())
    assert len(sampler) == len(plan)
    assert list(sampler) == plan.tolist()
    assert resumed.samples_seen == pruner.samples_seen
