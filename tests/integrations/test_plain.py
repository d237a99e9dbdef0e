"""A loop of one's own by a recipe, and plans cut into batches for several processes."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import cpfast
from cpfast.integrations.batches import PlannedBatches
from cpfast.integrations.plain import prepare

N, EPOCHS, BATCH = 101, 8, 16


def dataset():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=g)
    return TensorDataset(x, (x[:, 0] > 0).long())


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return net, torch.optim.SGD(net.parameters(), 0.1)


def doubled(items):
    x, y = torch.utils.data.default_collate(items)
    return {"x": 2 * x, "y": y}


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_the_loop_that_is_written_by_hand(workers):
    net, optimizer = model()
    given = DataLoader(dataset(), BATCH, shuffle=True, collate_fn=doubled, num_workers=workers)
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=3)
    course, loader = prepare(given, EPOCHS, detector=detector, repeats=2, seed=5)
    lengths = []
    for _ in course.epochs(net, optimizer):
        lengths.append(len(loader))
        for batch, index in loader:
            loss = course.pruner.loss(net(batch["x"]), batch["y"], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    own, optimizer = model()
    pruner, rotation = cpfast.DataPruner(N, EPOCHS, seed=5), cpfast.LayerRotation(own)
    x, y = dataset().tensors
    for epoch in range(EPOCHS):
        after = epoch >= 3
        plan = pruner.plan(
            epoch, repeats=1 if after else 2, prune=after and epoch < 7,
            period_end=3 if after else None,
        )  # fmt: skip
        assert lengths[epoch] == -(-len(plan) // BATCH)
        for index in plan.split(BATCH):
            loss = pruner.loss(own(2 * x[index]), y[index], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rotation.update()
    assert all(map(torch.equal, net.parameters(), own.parameters()))
    assert course.rotation.compute() == rotation.compute()
    assert lengths[0] == 13 and min(lengths) < 7 == lengths[-1]
    assert course.pruner.samples_seen == course.pruner.samples_planned


def test_the_loader_keeps_its_workers_and_options():
    given = DataLoader(
        dataset(), BATCH, shuffle=True, num_workers=1, prefetch_factor=3, timeout=60,
        persistent_workers=True, multiprocessing_context="fork",
        worker_init_fn=print, generator=torch.Generator(),
    )  # fmt: skip
    _, loader = prepare(given, EPOCHS)
    for name in (
        "num_workers", "prefetch_factor", "timeout", "persistent_workers", "worker_init_fn",
        "generator", "pin_memory", "in_order", "multiprocessing_context",
    ):  # fmt: skip
        assert getattr(loader, name) == getattr(given, name)
    _, loader = prepare(DataLoader(dataset(), 60, shuffle=True, drop_last=True), EPOCHS)
    assert [len(index) for _, index in loader] == [60] and len(loader) == 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(N))


class Other(DataLoader):
    pass


def test_what_has_no_random_order_to_take_the_place_of_is_refused():
    data = dataset()
    for loader in (
        DataLoader(data, BATCH),
        DataLoader(data, sampler=torch.utils.data.RandomSampler(data, num_samples=5)),
        DataLoader(data, sampler=torch.utils.data.RandomSampler(data, replacement=True)),
        DataLoader(data, sampler=DistributedSampler(data, 2, 0, shuffle=False)),
        DataLoader(data, sampler=cpfast.PrunedSampler(cpfast.DataPruner(N))),
    ):
        with pytest.raises(ValueError, match="loader: expected one that visits each sample"):
            prepare(loader, EPOCHS)
    for loader in (
        DataLoader(data, batch_size=None),
        DataLoader(data, batch_sampler=[[0, 1], [2]]),
    ):
        with pytest.raises(ValueError, match="loader: expected batches that are made by"):
            prepare(loader, EPOCHS)
    with pytest.raises(TypeError, match="loader: expected a torch.*got a Other"):
        prepare(Other(data, BATCH, shuffle=True), EPOCHS)
    with pytest.raises(TypeError, match="got Stream, whose samples have no index"):
        prepare(DataLoader(Stream(), BATCH), EPOCHS)
    good = DataLoader(data, BATCH, sampler=DistributedSampler(data, 2, 0))
    with pytest.raises(ValueError, match="has 101 samples, and the pruner was made for 7"):
        prepare(good, EPOCHS, pruner=cpfast.DataPruner(7, EPOCHS))
    with pytest.raises(ValueError, match="recipe: changes resolution"):
        prepare(good, EPOCHS, recipe="growing-resolution")
    with pytest.raises(TypeError, match="epochs: expected an integer"):
        prepare(good, None)
    assert prepare(good, EPOCHS, recipe="growing-resolution", applied=["resolution"])


def planned(number, ranks, batch_size, drop_last=False):
    """The batches of each rank, and the plan."""
    sampler = cpfast.PrunedSampler(cpfast.DataPruner(number), shard="never")
    options = {"drop_last": drop_last, "num_replicas": ranks}
    batches = [PlannedBatches(sampler, batch_size, rank=rank, **options) for rank in range(ranks)]
    lists = [list(one) for one in batches]
    assert [len(one) for one in batches] == [len(one) for one in lists]
    return lists, sampler.plan().tolist()


@pytest.mark.filterwarnings("ignore:PrunedSampler")  # whose epoch each rank iterates here
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_ranks_see_each_sample_once_in_as_many_batches(ranks, batch_size):
    whole = ranks * batch_size
    for number in sorted({ranks, whole, *range(2 * whole, 3 * whole + 1), 2 * whole + 1}):
        lists, plan = planned(number, ranks, batch_size)
        assert len({len(one) for one in lists}) == 1
        together = [sum(step, []) for step in zip(*lists, strict=True)]
        assert sum(together, []) == plan and len(set(plan)) == number
        for step, batch in zip(zip(*lists, strict=True), together, strict=True):
            sizes = [len(part) for part in step]
            assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1
            assert len(batch) == whole or batch is together[-1]
        assert len(together[-1]) < whole + ranks
        if number >= whole:
            lists, plan = planned(number, ranks, batch_size, drop_last=True)
            together = [sum(step, []) for step in zip(*lists, strict=True)]
            assert sum(together, []) == plan[: number - number % whole]
            assert {len(batch) for batch in together} == {whole}


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(RuntimeError, match="2 samples are planned, fewer than the 3 processes"):
        planned(2, 3, 4)
    with pytest.raises(RuntimeError, match="drop_last leaves none: a batch is of 12"):
        planned(11, 3, 4, drop_last=True)
    with pytest.raises(ValueError, match="source: shards .shard='auto'."):
        PlannedBatches(cpfast.PrunedSampler(cpfast.DataPruner(9)), 3)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        PlannedBatches(cpfast.PrunedSampler(cpfast.DataPruner(9), shard="never"), 0)


def test_one_of_several_processes_without_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, loader = prepare(DataLoader(dataset(), BATCH, shuffle=True), EPOCHS)
    for use in (len, lambda loader: next(iter(loader))):
        with pytest.raises(RuntimeError, match="one of 2 processes .WORLD_SIZE."):
            use(loader)


def test_the_same_epoch_again_is_said():
    course, loader = prepare(DataLoader(dataset(), BATCH, shuffle=True), EPOCHS)
    course.begin(0)
    list(loader)
    with pytest.warns(UserWarning, match="epoch 0 is iterated again"):
        list(loader)
