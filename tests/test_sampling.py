import copy
import pickle
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
    sampler = cpfast.PrunedSampler(cpfast.DataPruner(N, policy="random"))
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
    assert resumed.samples_planned == pruner.samples_planned


def settings_of(sampler):
    list(sampler)
    return sampler.pruner.planned


def test_the_settings_follow_from_the_recipe_whoever_sets_the_epoch():
    recipe = cpfast.Recipe.named("detector+prune", 20)
    detector = cpfast.CriticalPeriodDetector("fixed", 20, at=2)
    pruner = cpfast.DataPruner(N, 20)
    sampler = cpfast.PrunedSampler(pruner, recipe=recipe, detector=detector)
    assert settings_of(sampler) == (0, 3, False)  # before any set_epoch
    detector.step(0.0, 1)
    sampler.set_epoch(1)
    assert settings_of(sampler) == (1, 3, False)
    assert detector.step(0.0, 2)
    sampler.set_epoch(2)
    assert settings_of(sampler) == (2, 1, True)
    with pytest.raises(ValueError, match="detector: has no effect without a recipe"):
        cpfast.PrunedSampler(pruner, detector=detector)


def test_a_second_bare_set_epoch_keeps_what_was_chosen():
    sampler = cpfast.PrunedSampler(scored_pruner())
    sampler.set_epoch(2, repeats=3, prune=False)
    sampler.set_epoch(2)  # a wrapper's
    assert settings_of(sampler) == (2, 3, False)
    sampler.set_epoch(3)
    assert settings_of(sampler) == (3, 1, True)


def test_each_chosen_epoch_is_told_and_a_recipe_can_come_later():
    sampler = cpfast.PrunedSampler(cpfast.DataPruner(N, num_epochs=10))
    told = []
    sampler.told.append(told.append)
    sampler.set_epoch(3, repeats=2)
    sampler.set_epoch(3)
    assert told == [3, 3] and len(sampler) == 2 * N
    recipe = cpfast.Recipe.named("full", 10)
    sampler.follow(recipe, None)
    sampler.set_epoch(3)
    assert len(sampler) == 3 * N
    sampler.set_epoch(3, repeats=2)
    sampler.follow(recipe, None)  # which it follows already
    assert len(sampler) == 2 * N


def test_a_held_epoch_is_kept_from_those_who_count_by_themselves():
    sampler = cpfast.PrunedSampler(scored_pruner())
    sampler.set_epoch(3, repeats=2)
    sampler.held = True
    sampler.set_epoch(0)
    assert settings_of(sampler) == (3, 2, True) and sampler.epoch == 3
    sampler.set_epoch(3, prune=False)
    assert settings_of(sampler) == (3, 2, False)
    state = sampler.state_dict()
    sampler.load_state_dict({**state, "position": 5, "finished": False})
    assert len(list(sampler)) == 2 * N - 5
    sampler.held = False
    sampler.set_epoch(0)
    assert settings_of(sampler) == (0, 1, True)


def test_its_length_plans_nothing():
    pruner = scored_pruner()
    sampler = cpfast.PrunedSampler(pruner)
    pruner.plan(0)
    sampler.set_epoch(1)
    before = len(sampler)
    assert pruner.planned == (0, 1, True)
    assert pruner.weights(torch.arange(N)).eq(1).all()
    assert before == len(list(sampler)) == len(pruner.plan(1))


def test_iterators_that_are_not_used_up_are_no_second_iteration():
    sampler = cpfast.PrunedSampler(cpfast.DataPruner(N, policy="random"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(sampler))  # a sanity check, or a length that somebody asked for
        sampler.set_epoch(0)
        iter(sampler)
        assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize("stop", [0, 40])
def test_it_goes_on_in_the_middle_of_an_epoch(stop):
    recipe = cpfast.Recipe.named("prune", 20)
    pruner = scored_pruner()
    sampler = cpfast.PrunedSampler(pruner, recipe=recipe)
    sampler.set_epoch(4)
    iterator = iter(sampler)
    begun = [next(iterator) for _ in range(stop)]
    states = copy.deepcopy((pruner.state_dict(), sampler.state_dict()))
    rest = list(iterator)
    resumed_pruner = cpfast.DataPruner(N)
    resumed = cpfast.PrunedSampler(resumed_pruner, recipe=recipe)
    resumed_pruner.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert list(resumed) == rest
    assert begun + rest == pruner.plan(4, repeats=3, keep=0.5).tolist()
    with pytest.raises(ValueError, match="state_dict: no 'position'"):
        resumed.load_state_dict({"epoch": 0})


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_it_is_copied_and_pickled(copy_of):
    sampler = cpfast.PrunedSampler(scored_pruner())
    sampler.set_epoch(1)
    assert list(copy_of(sampler)) == list(sampler)


def test_a_data_set_of_another_size_is_refused():
    pruner = cpfast.DataPruner(N)
    assert len(cpfast.PrunedSampler(pruner, dataset=dataset())) == N
    with pytest.raises(ValueError, match=f"dataset: has {N} samples, .* made for 7"):
        cpfast.PrunedSampler(cpfast.DataPruner(7), dataset=dataset())


def test_one_of_several_processes_without_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    pruner = cpfast.DataPruner(N)
    sampler = cpfast.PrunedSampler(pruner)  # as scripts make it before they start training
    for use in (len, lambda s: list(s)):
        with pytest.raises(RuntimeError, match=r"one of 2 processes \(WORLD_SIZE\).*shard='never'"):
            use(sampler)
    assert len(list(cpfast.PrunedSampler(pruner, shard="never"))) == N
    assert len(list(cpfast.PrunedSampler(pruner, 2, 1))) == N // 2
    with pytest.raises(ValueError, match="shard: .* got 'always'"):
        cpfast.PrunedSampler(pruner, shard="always")
    with pytest.raises(ValueError, match=r"rank: expected one of 0\.\.1, got 2"):
        cpfast.PrunedSampler(pruner, 2, 2)
