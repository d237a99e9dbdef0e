"""Accelerate: each planned sample once, in the epoch that is meant, on one process and on two."""

import itertools
import json
import pathlib
import subprocess
import sys
import warnings

import pytest
import torch
from support.accelerators import forget_accelerators
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import cpfast
from cpfast.recipes import LearningRate
from cpfast.schedules import FractionLR, cosine

pytestmark = pytest.mark.needs("accelerate")

SUPPORT = pathlib.Path(__file__).parents[1] / "support"
N, EPOCHS, BATCH = 203, 5, 16


@pytest.fixture(autouse=True)
def forgotten():
    """What Accelerate keeps for the whole process."""
    yield
    forget_accelerators()


def new_accelerator(accumulate=1, mixed_precision="no", **configuration):
    from accelerate import Accelerator, DataLoaderConfiguration

    forget_accelerators()
    return Accelerator(
        cpu=True,
        gradient_accumulation_steps=accumulate,
        mixed_precision=mixed_precision,
        dataloader_config=DataLoaderConfiguration(**configuration),
    )


def dataset():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 8, generator=g)
    return TensorDataset(x, (x[:, 0] + 0.3 * x[:, 1] > 0).long())


def new_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def new_pruner(**options):
    return cpfast.DataPruner(N, EPOCHS, anneal=0.8, **options)


def new_loader(pruner, **options):
    sampler = cpfast.PrunedSampler(pruner)
    return DataLoader(cpfast.IndexedDataset(dataset()), BATCH, sampler=sampler, **options)


def of_period():
    """Two passes, then a pruned one; changes after the second epoch."""
    during, after = cpfast.Window("during"), cpfast.Window("after")
    return cpfast.Recipe(
        EPOCHS,
        [
            cpfast.recipes.Repeats(2, during),
            cpfast.recipes.Prune(window=after),
            LearningRate(0.5, after),
        ],
    )


def started(accelerator, **options):
    """By :func:`prepare`, which registers the course."""
    from cpfast.integrations.accelerate import prepare

    model, optimizer = new_model()
    course, loader = prepare(
        accelerator,
        DataLoader(dataset(), BATCH, shuffle=True, **options),
        EPOCHS,
        recipe=of_period(),
        pruner=new_pruner(),
        detector=cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2),
    )
    return course, *accelerator.prepare(model, optimizer, loader)


def train(accelerator, course, model, optimizer, loader, save=None, at=None):
    """Saves after batch ``at[1]`` of epoch ``at[0]``, None for its end, and stops there."""
    lengths = []
    for epoch in course.epochs(model, optimizer):
        lengths.append(len(loader))
        for batch, ((x, y), index) in enumerate(loader):
            with accelerator.accumulate(model):
                accelerator.backward(course.pruner.loss(model(x), y, index))
                optimizer.step()
                optimizer.zero_grad()
            if (epoch, batch) == at:
                accelerator.save_state(save)
                return lengths
        if (epoch, None) == at:
            accelerator.save_state(save)
            return lengths
    return lengths


def by_hand(accumulate=1, forward=lambda model, x: model(x)):
    """The same training in a plain loop; also what was planned."""
    model, optimizer = new_model()
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)
    pruner, rotation = new_pruner(), cpfast.LayerRotation(model)
    data, plans = dataset(), []
    for epoch in range(EPOCHS):
        after = detector.ended
        plan = pruner.plan(
            epoch, repeats=1 if after else 2, prune=after, period_end=detector.end_epoch
        )
        plans.append(plan.tolist())
        optimizer.param_groups[0]["lr"] = 0.05 if after else 0.1
        batches = plan.split(BATCH)
        for number, index in enumerate(batches, 1):
            x, y = data[index]
            (pruner.loss(forward(model, x), y, index) / accumulate).backward()
            if number % accumulate == 0 or number == len(batches):
                optimizer.step()
                optimizer.zero_grad()
        rotation.update()
        detector.step(rotation.mean(), epoch + 1)
    return model, pruner, rotation, plans


def assert_same(model, other):
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("loader", "configuration"),
    [
        ({}, {}),
        ({"num_workers": 2, "persistent_workers": True}, {}),
        ({}, {"even_batches": False}),
        ({}, {"split_batches": True}),
        ({}, {"dispatch_batches": True}),
        ({}, {"use_stateful_dataloader": True}),
        ({"num_workers": 2}, {"use_stateful_dataloader": True}),
    ],
)
def test_one_process_trains_as_a_plain_loop_does(loader, configuration):
    if "use_stateful_dataloader" in configuration:
        pytest.importorskip("torchdata")
    accelerator = new_accelerator(**configuration)
    course, model, optimizer, loader = started(accelerator, **loader)
    lengths = train(accelerator, course, model, optimizer, loader)
    own, pruner, rotation, plans = by_hand()
    assert_same(model, own)
    assert lengths == [-(-len(plan) // BATCH) for plan in plans]
    assert len(set(lengths)) > 2
    assert torch.equal(course.pruner.scores, pruner.scores)
    assert course.rotation.compute() == rotation.compute()
    assert course.pruner.samples_seen == course.pruner.samples_planned
    assert course.detector.end_epoch == 2


@pytest.mark.parametrize("accumulate", [3, 4])
def test_left_over_micro_batches_are_a_step_of_their_own_epoch(accumulate):
    accelerator = new_accelerator(accumulate)
    parts = started(accelerator)
    lengths = train(accelerator, *parts)
    assert any(length % accumulate for length in lengths)
    assert_same(parts[1], by_hand(accumulate)[0])


def test_the_rate_is_changed_within_the_step_of_the_wrapped_optimizer():
    accelerator = new_accelerator()
    course, model, optimizer, _ = started(accelerator)
    rates = []
    epochs = course.epochs(model, optimizer)
    next(epochs)
    optimizer.optimizer.register_step_pre_hook(
        lambda inner, *_: rates.append(inner.param_groups[0]["lr"])
    )
    for _ in epochs:
        optimizer.step()
        course.pruner.update(
            course.pruner.plan(course.epoch), torch.ones(1).expand(course.pruner.remaining)
        )
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert rates == [0.1, 0.05, 0.05, 0.05]
    assert not hasattr(optimizer, "_optimizer_step_pre_hooks")


@pytest.mark.parametrize(
    ("at", "workers", "stateful"),
    [
        ((0, 3), 0, False),
        ((1, None), 0, False),
        ((3, 2), 2, False),
        ((EPOCHS - 1, None), 0, False),
        ((0, 3), 0, True),
        ((1, None), 2, True),
        ((3, 2), 2, True),
        ((3, None), 0, True),
    ],
)
def test_a_resume_equals_the_plain_loop(at, workers, stateful, tmp_path):
    if stateful:
        pytest.importorskip("torchdata")
    accelerator = new_accelerator(use_stateful_dataloader=stateful)
    course, model, optimizer, loader = started(accelerator, num_workers=workers)
    train(accelerator, course, model, optimizer, loader, tmp_path / "state", at)

    accelerator = new_accelerator(use_stateful_dataloader=stateful)
    course, model, optimizer, loader = started(accelerator, num_workers=workers)
    accelerator.load_state(tmp_path / "state")
    epoch, batch = at
    assert course.completed == epoch + (batch is None)
    if batch is not None and not stateful:
        loader = Skipping(accelerator, loader, batch + 1)
    train(accelerator, course, model, optimizer, loader)
    own, pruner, rotation, _ = by_hand()
    assert_same(model, own)
    assert torch.equal(course.pruner.scores, pruner.scores)
    assert course.rotation.compute() == rotation.compute()
    assert course.pruner.samples_seen == pruner.samples_seen


class Skipping:
    """As users write it in their loop: the first time without its first batches."""

    def __init__(self, accelerator, loader, batches):
        self.loaders = itertools.chain(
            [accelerator.skip_first_batches(loader, batches)], itertools.repeat(loader)
        )
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(next(self.loaders))


def read(loader):
    return [i for _, index in loader for i in index.tolist()]


def scored(pruner, plan):
    pruner.update(torch.tensor(plan), 1 + torch.tensor(plan).float() / N)


def prepared(accelerator, pruner, **options):
    from cpfast.integrations.accelerate import prepare_loader

    loader = new_loader(pruner, **options)
    return prepare_loader(accelerator, loader), loader.sampler


def test_accelerates_own_count_follows_whoever_chose_the_epoch():
    pruner = new_pruner()
    loader, sampler = prepared(new_accelerator(), pruner)
    for epoch in range(2):  # counted
        plan = read(loader)
        assert plan == pruner.plan(epoch).tolist()
        scored(pruner, plan)
    sampler.set_epoch(3, repeats=2, prune=False)  # chosen, with what only the sampler takes
    assert len(loader) == -(-2 * N // BATCH) and loader.iteration == 3
    plan = read(loader)
    assert sorted(plan) == sorted([*range(N)] * 2)
    scored(pruner, plan)
    plan = read(loader)  # counted on from there
    assert plan == pruner.plan(4).tolist() and len(plan) == N
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # epochs that were not recorded
        loader.set_epoch(1)  # through the loader
        assert len(loader) == -(-pruner.planned_length(1) // BATCH)
        assert read(loader) == pruner.plan(1).tolist()
        sampler.set_epoch(2)
        next(iter(loader))  # broken off: the same again
        assert pruner.planned[0] == 2 and loader.iteration == 2


def test_an_epoch_chosen_before_the_loader_is_prepared_is_kept():
    from cpfast.integrations.accelerate import prepare_loader

    pruner = new_pruner()
    loader = new_loader(pruner)
    loader.sampler.set_epoch(2, repeats=3)
    loader = prepare_loader(new_accelerator(), loader)
    assert len(read(loader)) == 3 * N and pruner.planned == (2, 3, True)


@pytest.mark.parametrize("configuration", [{}, {"use_stateful_dataloader": True}])
def test_skipped_batches_are_of_the_chosen_epoch_and_the_count_goes_on(configuration):
    if configuration:
        pytest.importorskip("torchdata")
    accelerator = new_accelerator(**configuration)
    pruner = new_pruner()
    loader, sampler = prepared(accelerator, pruner)
    scored(pruner, read(loader))
    skipped = accelerator.skip_first_batches(loader, 2)  # before it is chosen
    sampler.set_epoch(1)
    assert len(skipped) == len(loader) - 2
    rest = read(skipped)
    plan = pruner.plan(1).tolist()
    assert rest == plan[2 * BATCH :]
    scored(pruner, plan)
    assert read(loader) == pruner.plan(2).tolist()
    assert pruner.planned[0] == 2


@pytest.mark.parametrize("trained", [1.0, 0.3])
def test_without_a_course_a_resume_goes_on_in_the_right_epoch(trained, tmp_path):
    """The parts by themselves, and nobody says which epoch it is."""

    def parts():
        accelerator = new_accelerator()
        model, _ = accelerator.prepare(*new_model())
        pruner = new_pruner()
        loader, _ = prepared(accelerator, pruner)
        rotation, detector = cpfast.LayerRotation(model), cpfast.CriticalPeriodDetector()
        accelerator.register_for_checkpointing(rotation, detector, pruner)
        return accelerator, model, pruner, loader, rotation, detector

    accelerator, model, pruner, loader, rotation, detector = parts()
    for _ in range(2):
        scored(pruner, read(loader))
    with torch.no_grad():
        model[0].weight.add_(0.1)
    rotation.update()
    detector.step(0.5, 2)
    plan = read(loader)
    scored(pruner, plan[: int(trained * len(plan))])
    accelerator.save_state(tmp_path / "state")
    following = 3 if trained == 1 else 2
    expected = pruner.plan(following).tolist()

    accelerator, _, again, loader, measured, detector = parts()
    accelerator.load_state(tmp_path / "state")
    skipped = accelerator.skip_first_batches(loader, 1) if following == 2 else loader
    assert read(skipped) == expected[BATCH * (following == 2) :]
    assert again.planned[0] == following and loader.iteration == following + 1
    assert measured.compute() == rotation.compute() and measured.compute()["0.weight"] > 0
    assert detector.history == [(2, 0.5)]


def test_what_is_gathered_for_metrics_loses_nothing_of_an_epoch_of_another_length():
    accelerator = new_accelerator()
    pruner = new_pruner(strict=None)
    loader, sampler = prepared(accelerator, pruner)
    scored(pruner, read(loader))
    last = set()
    for repeats in range(1, 5):
        sampler.set_epoch(1, repeats=repeats, prune=False)
        gathered = [i for _, index in loader for i in accelerator.gather_for_metrics(index)]
        assert gathered == pruner.plan(1, repeats=repeats, prune=False).tolist()
        last.add(len(gathered) % BATCH)
    assert max(last) > N % BATCH  # what would be left of it
    assert loader.total_batch_size == BATCH


def test_a_schedule_by_the_fraction_of_training_is_prepared_too():
    accelerator = new_accelerator(2)
    course, model, optimizer, loader = started(accelerator)
    schedule = accelerator.prepare(FractionLR(optimizer, cosine()))
    for epoch in course.epochs(model, optimizer):
        for batch, ((x, y), index) in enumerate(loader, 1):
            with accelerator.accumulate(model):
                accelerator.backward(course.pruner.loss(model(x), y, index))
                optimizer.step()
                schedule.step((epoch + batch / len(loader)) / EPOCHS)
                optimizer.zero_grad()
        expected = 0.1 * cosine()((epoch + 1) / EPOCHS)
        assert schedule.get_last_lr() == [pytest.approx(expected, abs=1e-9)]


def test_bfloat16_is_as_in_a_plain_loop():
    accelerator = new_accelerator(mixed_precision="bf16")
    course, model, optimizer, loader = started(accelerator)
    train(accelerator, course, model, optimizer, loader)

    def forward(own, x):
        with torch.autocast("cpu", torch.bfloat16):
            return own(x).float()

    own, pruner, _, _ = by_hand(forward=forward)
    assert_same(model, own)
    assert torch.equal(course.pruner.scores, pruner.scores)


def test_drop_last_leaves_out_the_rest():
    pruner = new_pruner(strict=None)
    loader, _ = prepared(new_accelerator(), pruner, drop_last=True)
    assert read(loader) == pruner.plan(0).tolist()[: N - N % BATCH]


def logged(tmp_path, log_with):
    """A training whose tracker is told of each epoch."""
    from accelerate import Accelerator

    from cpfast.integrations.accelerate import prepare

    forget_accelerators()
    accelerator = Accelerator(cpu=True, log_with=log_with, project_dir=str(tmp_path))
    accelerator.init_trackers("cpfast")
    model, optimizer = new_model()
    course, loader = prepare(
        accelerator,
        DataLoader(dataset(), BATCH, shuffle=True),
        EPOCHS,
        recipe=of_period(),
        pruner=new_pruner(),
        detector=cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2),
        log=accelerator.log,
    )
    train(accelerator, course, *accelerator.prepare(model, optimizer, loader))
    return accelerator, course


@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_what_was_measured(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator, course = logged(tmp_path, "tensorboard")
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "cpfast")).Reload()
    rotation = course.rotation.compute()
    for name, value in rotation.items():
        scalars = events.Scalars(f"cpfast/rotation/{name}")
        assert [s.step for s in scalars] == list(range(1, EPOCHS + 1))
        assert scalars[-1].value == pytest.approx(value)
    assert [s.value for s in events.Scalars("cpfast/period_end")] == [2] * (EPOCHS - 1)
    kept = [s.value for s in events.Scalars("cpfast/kept")]
    assert kept[:2] == [1, 1] and 0 < kept[2] < 1


@pytest.mark.needs("wandb")
def test_wandb_shows_what_was_measured(tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    accelerator, course = logged(tmp_path, "wandb")
    accelerator.log({"ended": True}, step=EPOCHS + 1)  # a step is whole when the next begins
    summary = dict(accelerator.get_tracker("wandb", unwrap=True).summary)
    accelerator.end_training()
    for name, value in course.rotation.compute().items():
        assert summary[f"cpfast/rotation/{name}"] == pytest.approx(value)
    assert summary["cpfast/period_end"] == 2 and "cpfast/kept" in summary


def test_what_it_cannot_do_is_refused():
    from cpfast.integrations.accelerate import prepare, prepare_loader

    accelerator = new_accelerator()
    ready = prepare_loader(accelerator, new_loader(new_pruner()))
    assert prepare_loader(accelerator, ready) is ready is accelerator.prepare(ready)
    by_accelerate = accelerator.prepare(DataLoader(dataset(), BATCH, shuffle=True))
    for refuse in (prepare_loader, lambda a, loader: prepare(a, loader, EPOCHS)):
        with pytest.raises(ValueError, match=r"loader: was prepared by accelerator.prepare\(\)"):
            refuse(accelerator, by_accelerate)
    with pytest.raises(ValueError, match="expected DataLoader.*got one with a RandomSampler"):
        prepare_loader(accelerator, DataLoader(dataset(), BATCH, shuffle=True))
    shard = cpfast.PrunedSampler(new_pruner(), 2, 1)
    with pytest.raises(ValueError, match="made for rank 1 of 2, and it is sharded here"):
        prepare_loader(accelerator, DataLoader(dataset(), BATCH, sampler=shard))
    for sampler in (None, WeightedRandomSampler(torch.ones(N), N)):
        with pytest.raises(ValueError, match="visits each sample in random order"):
            prepare(accelerator, DataLoader(dataset(), BATCH, sampler=sampler), EPOCHS)
    with pytest.raises(ValueError, match="expected batches that are made by batch_size"):
        prepare(accelerator, DataLoader(dataset(), batch_size=None, shuffle=True), EPOCHS)
    with pytest.raises(
        RuntimeError,
        match="5 samples are planned, of which drop_last leaves none: a batch is of 16",
    ):
        few = cpfast.PrunedSampler(cpfast.DataPruner(5))
        few = DataLoader(cpfast.IndexedDataset(dataset()), BATCH, sampler=few, drop_last=True)
        next(iter(prepare_loader(accelerator, few)))


def test_processes_that_share_a_batch_are_refused(monkeypatch):
    from types import SimpleNamespace

    from accelerate import Accelerator, DistributedType

    from cpfast.integrations.accelerate import prepare_loader

    accelerator = new_accelerator()
    sizes = SimpleNamespace(tp_size=2, cp_size=1, sp_size=1)
    monkeypatch.setattr(Accelerator, "parallelism_config", sizes)
    with pytest.raises(ValueError, match="tp_size is 2"):
        prepare_loader(accelerator, new_loader(new_pruner()))
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.MEGATRON_LM)
    with pytest.raises(ValueError, match="MEGATRON_LM reads data in a way of its own"):
        prepare_loader(accelerator, new_loader(new_pruner()))


def test_a_change_of_accelerate_is_named(monkeypatch):
    from cpfast.integrations import accelerate as integration

    monkeypatch.setattr(integration, "prepare_data_loader", lambda loader, *_, **__: loader)
    with pytest.raises(RuntimeError, match="written for accelerate 1.15.*no iteration"):
        integration.prepare_loader(new_accelerator(), new_loader(new_pruner()))


def test_where_it_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "cpfast.integrations.accelerate", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'cpfast\[accelerate\]'"):
        import cpfast.integrations.accelerate  # noqa: F401


# --- two processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    out = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(SUPPORT / "accelerate_epochs.py"), str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


WAYS = (
    "default", "workers", "uneven", "split", "split uneven", "dispatch", "dispatch split",
    "drop_last", "stateful",
)  # fmt: skip


def expected(plan, way):
    """The batches of both processes, written down once more."""
    size = BATCH if "split" in way else 2 * BATCH
    batches = [plan[i : i + size] for i in range(0, len(plan), size)]
    if way == "drop_last":
        batches = [batch for batch in batches if len(batch) == size]
    elif len(batches[-1]) < 2:
        batches[-2:] = [batches[-2] + batches[-1]]
    halves = [len(batch) // 2 for batch in batches]
    return (
        [batch[:half] for batch, half in zip(batches, halves, strict=True)],
        [batch[half:] for batch, half in zip(batches, halves, strict=True)],
    )


def test_alone_accelerate_shards_twice(ranks):
    assert len({*ranks[0]["bare"], *ranks[1]["bare"]}) < 110  # of 203


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_see_each_planned_sample_once(ranks, way):
    first, second = (rank["read"][way] for rank in ranks)
    assert first["plans"] == second["plans"] and first["weights"] == second["weights"]
    assert len({len(plan) for plan in first["plans"]}) > 2
    for epoch, plan in enumerate(first["plans"]):
        batches = expected(plan, way)
        assert (first["given"][epoch], second["given"][epoch]) == batches
        if way != "drop_last":
            assert sorted(sum(batches[0] + batches[1], [])) == sorted(plan)
        number = len(batches[0])
        assert first["lengths"][epoch] == second["lengths"][epoch] == number
        assert first["ends"][epoch] == [False] * (number - 1) + [True]
    assert first["length of the next"] == len(expected(first["plans"][3], way)[0])


@pytest.mark.parametrize("way", ["default", "dispatch"])
def test_two_processes_skip_batches_of_the_epoch_that_is_meant(ranks, way):
    first, second = (rank["skip"][way] for rank in ranks)
    for epoch, skipped in enumerate((1, 0)):
        batches = expected(first["plans"][epoch], way)
        lost = len(first["plans"][epoch]) % 2 if way == "dispatch" and skipped else 0
        own = batches[0][skipped:], batches[1][skipped:]
        if lost:  # by Accelerate's own slice, of one size for all
            own[1][-1].pop()
        assert (first["given"][epoch], second["given"][epoch]) == own
    assert len(first["plans"][1]) < N


def by_hand_on_two(accumulate, plans, epochs=4):
    """As DistributedDataParallel averages the gradients of two halves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 8, generator=g)
    y = (x[:, 0] > 0).long()
    pruner = cpfast.DataPruner(N, epochs, anneal=1.0)
    lengths = []
    for epoch in range(epochs):
        plan = pruner.plan(epoch)
        halves = list(zip(*expected(plan.tolist(), "default"), strict=True))
        lengths.append(len(halves))
        for number, batch in enumerate(halves, 1):
            for half in map(torch.tensor, batch):
                (pruner.loss(model(x[half]), y[half], half) / 2 / accumulate).backward()
            if number % accumulate == 0 or number == len(halves):
                optimizer.step()
                optimizer.zero_grad()
        plans.append(len(plan))
    return model, lengths


@pytest.mark.parametrize(("name", "accumulate"), [("train", 1), ("accumulated", 3)])
def test_two_processes_train_as_one_does_on_both_halves(ranks, name, accumulate):
    first, second = (rank[name] for rank in ranks)
    assert first == second
    plans = []
    model, lengths = by_hand_on_two(accumulate, plans)
    assert first["lengths"] == lengths and first["seen"] == sum(plans)
    for mine, theirs in zip(first["weights"], model.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(mine), theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", ["None", "0", "2"])
def test_two_processes_resume_to_the_bit(ranks, at):
    assert ranks[0]["resumed"][at] == ranks[1]["resumed"][at]
    resumed, whole = ranks[0]["resumed"][at], ranks[0]["train"]
    assert resumed["weights"] == whole["weights"] and resumed["seen"] == whole["seen"]
    if at == "None":
        assert resumed["history"] == whole["history"]
    assert resumed["lengths"] == whole["lengths"][2 if at == "None" else 1 :]


@pytest.mark.needs("codecarbon")
def test_two_processes_are_told_the_energy_of_the_first(ranks):
    first, second = (rank["energy"] for rank in ranks)
    assert first == second and 0 < first[0] <= first[1]


def test_two_processes_are_told_what_cannot_be(ranks):
    for rank, own in enumerate(ranks):
        log = own["refused"]
        assert "call sync() on every rank before state_dict()" in log["unsynced"]
        assert "call sync() on every rank before plan(1)" in log["next"]
        assert f"made for rank {rank} of 2" in log["sharded"]
        assert "among 2 processes, of which 15 is no multiple" in log["split"]
        assert "choose one of them" in log["both"]
        assert "accelerator: knows 1 of the 2 processes" in log["alone"]
        assert "1 samples are planned, fewer than the 2 processes" in log["too few"]
