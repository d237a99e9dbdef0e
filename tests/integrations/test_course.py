"""A training whose loop is somebody else's, told of its epochs."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cpfast
from cpfast.integrations.course import Course
from cpfast.recipes import Freeze, LearningRate, Mixup, Repeats, WeightDecay
from cpfast.recipes import Prune as PruneAction

EPOCHS = 6
KWH = "cpfast/energy_kwh"


def data(seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 12, generator=g)
    return TensorDataset(x, (x[:, 0] + 0.3 * x[:, 1] > 0).long())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def made(recipe: cpfast.Recipe | None = None, criterion="fixed", log=None, energy=False, **options):
    dataset = data()
    if criterion == "fixed":
        options.setdefault("at", 2)
    detector = cpfast.CriticalPeriodDetector(criterion, EPOCHS, **options)
    pruner = cpfast.DataPruner(len(dataset), num_epochs=EPOCHS, policy="infobatch", anneal=0.8)
    sampler = cpfast.PrunedSampler(pruner)
    course = Course(detector, recipe=recipe, sampler=sampler, log=log, energy=energy)
    loader = DataLoader(cpfast.IndexedDataset(dataset), 16, sampler=sampler)
    return course, loader


def train(course: Course, loader: DataLoader, net: nn.Module, optimizer, epochs=range(EPOCHS)):
    course.attach(net, [optimizer])
    logs = []
    for epoch in epochs:
        course.begin(epoch)
        for (x, y), index in loader:
            loss = course.pruner.loss(net(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logs.append(course.end())
    return logs


def pruned_after() -> cpfast.Recipe:
    after = cpfast.Window("after")
    return cpfast.Recipe(EPOCHS, [Repeats(2), Repeats(1, after), PruneAction(window=after)])


def test_it_equals_a_loop_written_by_hand():
    course, loader = made(pruned_after())
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    logs = train(course, loader, net, optimizer)

    own = model()
    optimizer = torch.optim.SGD(own.parameters(), 0.1, momentum=0.9)
    dataset = data()
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)
    pruner = cpfast.DataPruner(len(dataset), num_epochs=EPOCHS, policy="infobatch", anneal=0.8)
    rotation = cpfast.LayerRotation(own)
    lengths = []
    for epoch in range(EPOCHS):
        ended = detector.end_epoch is not None
        plan = pruner.plan(epoch, repeats=1 if ended else 2, prune=ended,
                           period_end=detector.end_epoch)  # fmt: skip
        lengths.append(len(plan))
        for index in plan.split(16):
            x, y = dataset[index]
            loss = pruner.loss(own(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rotation.update()
        detector.step(rotation.mean(), epoch + 1)
    assert lengths[:2] == [192, 192] and lengths[2] < 96
    for mine, theirs in zip(net.parameters(), own.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert [log["cpfast/kept"] * (192 if e < 2 else 96) for e, log in enumerate(logs)] == lengths
    assert logs[-1]["cpfast/period_end"] == 2 and "cpfast/period_end" not in logs[0]
    expected = rotation.compute()
    assert {k: logs[-1][f"cpfast/rotation/{k}"] for k in expected} == expected
    assert logs[-1]["cpfast/rotation"] == pytest.approx(sum(expected.values()) / 3)


def test_rates_and_decays_change_within_the_step_alone():
    during = cpfast.Window("during")
    recipe = cpfast.Recipe(EPOCHS, [LearningRate(0.5, during), WeightDecay(0.0, during)])
    course, loader = made(recipe)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.01)
    seen = []
    optimizer.register_step_pre_hook(
        lambda o, a, k: seen.append((o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"]))
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    course.attach(net, [optimizer])
    inside = []
    optimizer.register_step_pre_hook(
        lambda o, a, k: inside.append((o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"]))
    )
    for epoch in range(3):
        course.begin(epoch)
        for (x, y), index in loader:
            course.pruner.loss(net(x), y, index).backward()
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**epoch)
            assert optimizer.param_groups[0]["weight_decay"] == 0.01
        course.end()
        schedule.step()
    assert inside[0] == (pytest.approx(0.05), 0.0)
    assert inside[-1] == (pytest.approx(0.081), 0.01)
    assert seen[0] == (0.1, 0.01)


def test_layers_freeze_and_those_that_others_froze_stay_so():
    recipe = cpfast.Recipe(EPOCHS, [Freeze(below=0.9, epochs=1, window=cpfast.Window("after"))])
    course, loader = made(recipe, at=3)
    net = model()
    net[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    train(course, loader, net, optimizer)
    assert course.settings.frozen > 0
    assert not net[0].weight.requires_grad and net[4].weight.requires_grad
    course.settings = course.settings._replace(frozen=0)
    course._freeze()
    assert net[0].weight.requires_grad and not net[0].bias.requires_grad


@pytest.mark.parametrize("criterion", ["slope45", "path_efficiency", "gradient_norm_growth"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resume_equals_the_undisturbed_training(criterion, stop, tmp_path):
    whole_, loader = made(pruned_after(), criterion)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    train(whole_, loader, net, optimizer)

    first, loader = made(pruned_after(), criterion)
    half = model()
    optimizer = torch.optim.SGD(half.parameters(), 0.1, momentum=0.9)
    train(first, loader, half, optimizer, range(stop))
    state = {"course": first.state_dict(), "net": half.state_dict(), "opt": optimizer.state_dict()}
    torch.save(state, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second, loader = made(pruned_after(), criterion)
    again = model()
    optimizer = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    second.load_state_dict(state["course"])  # before the model, as trainers do
    again.load_state_dict(state["net"])
    optimizer.load_state_dict(state["opt"])
    train(second, loader, again, optimizer, range(stop, EPOCHS))
    for mine, theirs in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert repr(second.detector.state_dict()) == repr(whole_.detector.state_dict())  # with NaN
    assert second.rotation.compute() == whole_.rotation.compute()


@pytest.mark.parametrize("criterion", ["slope45", "path_efficiency", "gradient_norm_growth"])
def test_a_resume_in_the_middle_of_an_epoch_equals_the_undisturbed_training(criterion, tmp_path):
    results = []
    for stops in (False, True):
        course, loader = made(pruned_after(), criterion)
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        train(course, loader, net, optimizer, range(2))
        course.begin(2)
        for number, ((x, y), index) in enumerate(list(loader)):
            if number == 2:
                optimizer.param_groups[0]["lr"] = 0.07  # by a schedule of steps
                if stops:
                    torch.save(course.state_dict(), tmp_path / "state.pt")
                    course.detach()
                    course, _ = made(pruned_after(), criterion)
                    course.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
                    course.attach(net, [optimizer])
                    course.begin(2)
                course.attach(net, [optimizer])  # and once more, which changes nothing
            loss = course.pruner.loss(net(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        course.end()
        state = course.state_dict()
        results.append(repr([state[key] for key in ("detector", "lrs", "diffusion", "rotations")]))
    assert results[0] == results[1]


def test_beginning_and_ending_twice_changes_nothing():
    course, loader = made(pruned_after())
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    course.attach(net, [optimizer])
    course.begin(0)
    plan = list(loader.sampler)
    course.begin(0)
    course.attach(net, [optimizer])
    assert list(loader.sampler) == plan
    course.end()
    history = copy.deepcopy(course.detector.history)
    course.end()
    assert course.detector.history == history
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    course.detach()
    assert not optimizer._optimizer_step_pre_hooks


def test_freezing_what_is_no_parameter_is_refused():
    recipe = cpfast.Recipe(EPOCHS, [Freeze(below=0.9, epochs=1)])
    course, _ = made(recipe)
    net = model()
    torch.nn.utils.parametrizations.weight_norm(net[2])
    with pytest.raises(RuntimeError, match="freezes layers, and 2.weight is no parameter"):
        course.attach(net)
    with pytest.raises(RuntimeError, match="DataParallel waits for the gradients of all"):
        course.attach(nn.DataParallel(model()))


def test_a_recipe_that_comes_after_the_length_was_asked_for_is_followed():
    course, loader = made()
    assert len(loader) == 6  # the sampler has chosen its epoch
    course = Course(course.detector, recipe=pruned_after(), sampler=loader.sampler)
    course.begin(0)
    assert len(loader) == 12


class Counts:
    """As loaders of trainers that call set_epoch in each iteration."""

    def __init__(self, loader):
        self.loader, self.counted = loader, 0

    def __iter__(self):
        self.loader.sampler.set_epoch(self.counted)
        self.counted += 1
        return iter(self.loader)


def test_a_loader_that_counts_epochs_is_not_listened_to():
    course, loader = made(pruned_after())
    course.attach(model(), [])
    counts = Counts(loader)
    for epoch in (4, 5):
        course.begin(epoch)
        seen = [i for _, index in counts for i in index.tolist()]
        assert seen == course.pruner.plan(epoch, **course.sampler._current().options()).tolist()
        assert course.pruner.planned[0] == epoch
        course.end()
    loader.sampler.set_epoch(1)  # of nobody's epoch
    assert loader.sampler.epoch == 1
    course.begin(2)
    course.detach()
    loader.sampler.set_epoch(1)
    assert loader.sampler.epoch == 1


def test_a_sampler_that_nobody_draws_from_is_warned_of():
    course, loader = made(pruned_after())
    course.attach(model(), [])
    course.begin(0)
    with pytest.warns(UserWarning, match="epoch 0 has ended, and nothing was drawn from it"):
        course.end()
    course.begin(1)
    list(loader)
    course.end()  # which says it once


def test_what_comes_with_the_sampler_is_refused_as_what_is_given():
    pruner = cpfast.DataPruner(8, num_epochs=EPOCHS)
    mixed = cpfast.PrunedSampler(pruner, recipe=cpfast.Recipe(EPOCHS, [Mixup(0.2)]))
    with pytest.raises(ValueError, match="recipe: changes mixup"):
        Course(sampler=mixed)
    assert Course(sampler=mixed, applied=["mixup"]).begin(0).mixup == 0.2
    asks = cpfast.CriticalPeriodDetector("accuracy50", EPOCHS)
    sampler = cpfast.PrunedSampler(pruner, recipe=cpfast.Recipe(EPOCHS, []), detector=asks)
    with pytest.raises(ValueError, match="'accuracy50' needs accuracy of a probe"):
        Course(sampler=sampler)


class Wrapper:
    """As trainers wrap optimizers: its step() calls no hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.zero_grad, self.step = optimizer.zero_grad, optimizer.step


def test_a_wrapped_optimizer_is_hooked_inside():
    course, _ = made(cpfast.Recipe(EPOCHS, [LearningRate(0.5)]))
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    course.attach(net, [Wrapper(Wrapper(optimizer))])
    rates = []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    course.begin(0)
    optimizer.step()
    assert rates == [0.05]
    with pytest.raises(TypeError, match="optimizers: expected one of torch's, or a wrapper"):
        course.attach(net, [object()])


def looped(course, loader, net, optimizer, save_in=None, stop_after=None):
    """Trains by epochs(); what is saved in the body of an epoch, after so many batches."""
    for epoch in course.epochs(net, optimizer):
        for batch, ((x, y), index) in enumerate(loader):
            if epoch == save_in and batch == stop_after:
                return {"course": course.state_dict(), "net": net.state_dict(),
                        "opt": optimizer.state_dict(), "batch": batch}  # fmt: skip
            loss = course.pruner.loss(net(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch == save_in:
            return {"course": course.state_dict(), "net": net.state_dict(),
                    "opt": optimizer.state_dict(), "batch": 0}  # fmt: skip
    return None


class Skipped:
    """A loader whose first epoch begins later."""

    def __init__(self, loader, batches):
        self.loader, self.batches = loader, batches

    def __iter__(self):
        skipped, self.batches = self.batches, 0
        return (batch for number, batch in enumerate(self.loader) if number >= skipped)


@pytest.mark.parametrize(
    ("criterion", "save_in", "stop_after"),
    [
        ("slope45", 1, None),
        ("path_efficiency", 2, None),
        ("gradient_norm_growth", 3, None),
        ("slope45", 0, 3),
        ("slope45", 3, 2),
        ("slope45", 3, 0),
        ("slope45", EPOCHS - 1, None),
    ],
)
def test_the_loop_over_epochs_resumes_where_it_was_saved(criterion, save_in, stop_after, tmp_path):
    def new():
        course, loader = made(pruned_after(), criterion)
        net = model()
        return course, loader, net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    by_hand, loader, net, optimizer = new()
    train(by_hand, loader, net, optimizer)
    torch.save(looped(*new(), save_in, stop_after), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    course, loader, again, optimizer = new()
    course.load_state_dict(state["course"])
    again.load_state_dict(state["net"])
    optimizer.load_state_dict(state["opt"])
    assert course.completed == save_in + (stop_after is None)
    looped(course, Skipped(loader, state["batch"]), again, optimizer)
    for mine, theirs in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert repr(course.detector.state_dict()) == repr(by_hand.detector.state_dict())  # with NaN
    assert course.pruner.samples_seen == by_hand.pruner.samples_seen
    assert course.completed == EPOCHS


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            "kakurenbo",
            "samples scored again after the steps of epoch",
        ),
        ("selective_backprop", "selects within the batches, which is the loop's to do"),
        ("infobatch", None),
    ],
)
def test_what_a_policy_leaves_to_the_loop_is_said_once(policy, said, caplog):
    pruner = cpfast.DataPruner(96, EPOCHS, policy, anneal=1.0)
    course = Course(pruner=pruner, sampler=cpfast.PrunedSampler(pruner))
    loader = DataLoader(cpfast.IndexedDataset(data()), 16, sampler=course.sampler)
    net = model()
    looped(course, loader, net, torch.optim.SGD(net.parameters(), 0.5, momentum=0.9))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None) and (said is None or said in messages[0])


def test_the_end_of_the_period_is_logged_once(caplog):
    course, loader = made(pruned_after())
    with caplog.at_level(logging.INFO, logger="cpfast"):
        net = model()
        train(course, loader, net, torch.optim.SGD(net.parameters(), 0.1))
    assert [r.getMessage() for r in caplog.records] == [
        f"the critical period has ended after epoch 2: {course.detector.reason}"
    ]


def test_each_epoch_is_logged():
    said = []
    course, loader = made(pruned_after(), log=lambda metrics, step: said.append((step, metrics)))
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in course.epochs(net, optimizer):
        for (x, y), index in loader:
            course.pruner.loss(net(x), y, index).backward()
            optimizer.step()
    assert [step for step, _ in said] == list(range(1, EPOCHS + 1))
    names = {"cpfast/rotation", *(f"cpfast/rotation/{name}" for name in course.rotation.names)}
    assert set(said[0][1]) == {*names, "cpfast/kept"}
    assert set(said[-1][1]) == {*names, "cpfast/kept", "cpfast/period_end"}
    rotation = course.rotation.compute()
    assert all(said[-1][1][f"cpfast/rotation/{name}"] == rotation[name] for name in rotation)
    assert (
        [metrics["cpfast/kept"] for _, metrics in said][:2] == [1, 1] > [said[2][1]["cpfast/kept"]]
    )


@pytest.mark.needs("codecarbon")
def test_energy_is_metered_and_goes_on_after_a_resume():
    used = []

    def new():
        course, loader = made(energy=True, log=lambda metrics, step: used.append(metrics[KWH]))
        net = model()
        return course, loader, net, torch.optim.SGD(net.parameters(), 0.1)

    state = looped(*new(), save_in=2, stop_after=2)["course"]
    assert 0 < used[0] <= used[1] and state["energy"]["kwh"] > 0
    state["energy"]["components"]["cpu"]["kwh"] += 1.0
    course, *rest = new()
    course.load_state_dict(state)
    used.clear()
    looped(course, *rest)
    assert all(1 < kwh < 1.1 for kwh in used) and len(used) >= EPOCHS - 3
    assert not course._metering.runs  # which has a thread of its own


@pytest.mark.needs("codecarbon")
def test_the_meter_stops_with_the_loop():
    course, _ = made(energy=True)
    for _ in course.epochs(model()):
        assert course._metering.runs
        break
    assert not course._metering.runs and course.state_dict()["energy"]["kwh"] > 0


def test_energy_needs_its_library(monkeypatch):
    monkeypatch.setattr("cpfast.integrations._metering.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"energy: needs codecarbon: pip install 'cpfast\[train\]"
    ):
        Course(cpfast.CriticalPeriodDetector("slope45", EPOCHS), energy=True)


def test_what_does_not_go_together_is_refused():
    detector = cpfast.CriticalPeriodDetector("slope45", EPOCHS)
    mixed = cpfast.Recipe(EPOCHS, [Mixup(0.2)])
    with pytest.raises(ValueError, match=r"recipe: changes mixup.*applied=\['mixup'\]"):
        Course(detector, recipe=mixed)
    assert Course(detector, recipe=mixed, applied=["mixup"]).begin(0).mixup == 0.2
    with pytest.raises(ValueError, match="applied: expected some of augment"):
        Course(detector, recipe=mixed, applied=["lr"])
    with pytest.raises(ValueError, match="there is no detector"):
        Course(recipe=pruned_after())
    with pytest.raises(ValueError, match="of 7 epochs, and the detector is of 6"):
        Course(detector, recipe=cpfast.Recipe(7, []))
    with pytest.raises(ValueError, match="'accuracy50' needs accuracy of a probe"):
        Course(cpfast.CriticalPeriodDetector("accuracy50", EPOCHS))
    with pytest.raises(ValueError, match="pruner: made for num_epochs=200, and .* of 6 epochs"):
        Course(detector, pruner=cpfast.DataPruner(8))
    a, b = (cpfast.DataPruner(8, num_epochs=EPOCHS) for _ in range(2))
    with pytest.raises(ValueError, match="sampler: its pruner is another one"):
        Course(pruner=a, sampler=cpfast.PrunedSampler(b))
    with pytest.raises(ValueError, match=r"state_dict\['pruner'\]: is of a training with a pruner"):
        state = made()[0].state_dict()
        Course(cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="call attach"):
        course = Course(detector)
        course.begin(0)
        course.end()
