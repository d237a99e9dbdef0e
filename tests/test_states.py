"""States changed at random, given to each class: refused in a line, or loaded as they are."""

import copy
import random

import pytest
import torch
from support.changed_states import assert_equal, change

import cpfast
from cpfast import schedules
from cpfast.recipes import Recipe

N, EPOCHS, LAYERS = 12, 6, 2


def rotation():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    made = cpfast.LayerRotation(model, history=3)
    with torch.no_grad():
        for weight in made.weights():
            weight.add_(0.1)
    made.update()
    made.record()
    return made


def detector(criterion="slope45", **options):
    made = cpfast.CriticalPeriodDetector(criterion, EPOCHS, **options)
    for epoch in range(1, EPOCHS):
        made.step([0.1 * epoch] * 3 if criterion == "path_efficiency" else 0.01 * epoch, epoch)
    return made


def pruner(policy="infobatch"):
    made = cpfast.DataPruner(N, EPOCHS, policy, strict=None)
    for epoch in range(3):
        index = made.plan(epoch)
        columns = {name: torch.rand(len(index)) for name in list(made.columns)[1:]}
        made.update(index, torch.rand(len(index)), **columns)
    return made


def sampler():
    made = cpfast.PrunedSampler(pruner(), recipe=Recipe.named("detector+prune", EPOCHS))
    made.set_epoch(2)
    iterator = iter(made)
    next(iterator)
    return made


def optimizer():
    return torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)


def schedule():
    return schedules.FractionSchedule(optimizer(), schedules.cosine())


def scheduler():
    made = schedules.FractionLR(optimizer(), schedules.cosine())
    made.optimizer.step()
    made.step(0.5)
    return made


MADE = {
    "rotation": rotation,
    "slope45": detector,
    "fixed": lambda: detector("fixed", at=3),
    "path_efficiency": lambda: detector("path_efficiency"),
    "infobatch": pruner,
    "kakurenbo": lambda: pruner("kakurenbo"),
    "ies": lambda: pruner("ies"),
    "sampler": sampler,
    "schedule": schedule,
    "scheduler": scheduler,
}


@pytest.mark.parametrize("name", MADE)
def test_a_changed_state_is_refused_in_a_line_or_loaded(name):
    draw, refused = random.Random(name), 0
    whole = MADE[name]().state_dict()
    for _ in range(300):
        state = copy.deepcopy(whole)
        place = change(state, draw)
        loaded = MADE[name]()
        before = copy.deepcopy(loaded.state_dict())
        try:
            loaded.load_state_dict(state)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and "state_dict" in str(error), (place, str(error))
            assert_equal(loaded.state_dict(), before, str(place))  # as it was
        else:
            loaded.state_dict()
    assert refused > 60


@pytest.mark.parametrize("name", MADE)
def test_what_is_missing_is_named(name):
    whole = MADE[name]().state_dict()
    optional = ("history", "recorded", "part") if name == "rotation" else ("patience", "not_before")
    if name == "scheduler":  # torch's own would be set from nothing
        whole = {key: whole[key] for key in ("fraction", "last_epoch", "base_lrs")}
    for key in set(whole) - set(optional):
        state = {k: v for k, v in whole.items() if k != key}
        with pytest.raises(ValueError, match=f"^state_dict: no '{key}'$"):
            MADE[name]().load_state_dict(state)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("state", [None, 3, "state", [], [1, 2], torch.zeros(2)])
def test_what_is_no_state_is_named(name, state):
    with pytest.raises(ValueError, match="^state_dict: expected names and values, got"):
        MADE[name]().load_state_dict(state)
