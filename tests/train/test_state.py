"""States changed at random: loaded as they are, or refused in a line that names the file."""

import copy
import random

import pytest
import torch
from support.changed_states import assert_equal, change
from support.toy_training import assert_same, make_config, start, toy_data

from cpfast.train import loop, run
from cpfast.train.config import ENVIRONMENT, OPTIMIZERS, SINCE
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 2
# What a load leaves out: it follows from the rest, or from the settings of the run.
IGNORED = {
    *(("config", name) for name in ENVIRONMENT),
    *(("config", name) for name in SINCE),  # missing; another value is refused
    *(("detector", name) for name in ("criterion", "options", "total_epochs", "end_epoch")),
    *(("detector", name) for name in ("reason", "patience", "not_before")),
    *(("pruner", name) for name in ("policy", "options", "keep", "anneal", "state")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By optimizer: settings, and the state after two epochs."""
    made = {}

    def make(name):
        if name not in made:
            config = make_config(
                optimizer=name, method="detector+prune", criterion="slope45", at=None, epochs=3
            )
            folder = start(tmp_path_factory.mktemp(name) / "run", config)
            run.train(config, toy_data(), folder, epochs=EPOCHS)
            made[name] = config, folder.checkpoint()
        return made[name]

    return make


def load(config, state, folder, monkeypatch):
    monkeypatch.setattr(RunFolder, "checkpoint", lambda self: {**state})
    return run.train(config, toy_data(), folder, epochs=EPOCHS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_changed_state_is_loaded_as_it_is_or_refused(tmp_path, monkeypatch, trained, name):
    config, whole = trained(name)
    folder, draw = start(tmp_path / "run", config), random.Random(name)
    refused = 0
    for _ in range(75):
        state = copy.deepcopy(whole)
        state.pop("metrics")
        place = change(state, draw)
        given = {**state, "metrics": whole["metrics"]}
        try:
            training = load(config, given, folder, monkeypatch)
        except UserError as error:
            message = str(error)
            assert message.startswith(f"{folder.path}/last.pt: "), place
            assert "\n" not in message and len(message) < 600, place
            refused += 1
            continue
        if place[:2] in IGNORED or place[:2] == ("optimizer", "param_groups"):
            continue
        assert_equal(run.state_dict(training), state, str(place))
    assert refused > 40


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_of_another_shape_is_refused(tmp_path, monkeypatch, trained, name):
    """A fused step would read past its end."""
    config, whole = trained(name)
    folder = start(tmp_path / "run", config)
    for kept in whole["optimizer"]["state"][0]:
        for wrong in (torch.zeros(1), torch.zeros(()).double(), torch.zeros(2, 2), None):
            state = copy.deepcopy(whole)
            state["optimizer"]["state"][0][kept] = wrong
            with pytest.raises(UserError, match=r"optimizer's state of parameter 0\['"):
                load(config, state, folder, monkeypatch)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_of_other_strides_steps_as_before(trained, name):
    """An expanded tensor has less memory than it has values."""
    config, whole = trained(name)
    states = []
    for expanded in (False, True):
        state = copy.deepcopy(whole)
        state.pop("metrics")
        for values in state["optimizer"]["state"].values():
            for key, tensor in values.items():
                same = torch.full((), 0.5).expand(tensor.shape)
                values[key] = same if expanded else torch.full_like(tensor, 0.5)
        training = loop.Training(config, toy_data())
        run.load_state_dict(training, state)
        loop.train_epoch(training)
        states.append(training.model.state_dict())
    assert_same(*states)


def test_a_scaler_of_other_values_is_refused(trained):
    config, whole = trained("sgd")
    training = loop.Training(config, toy_data())
    whole = {name: value for name, value in whole.items() if name != "metrics"}
    own = {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000, "_growth_tracker": 1}
    training.scaler.state_dict = lambda: dict(own)
    for wrong in ({"scale": float("nan")}, {"scale": None}, {"scale": 0.0}, {"scale": -1.0},
                  {"growth_factor": 3.0}, {"growth_interval": 0}, {"_growth_tracker": -1},
                  {"_growth_tracker": 1.5}, {"other": 1}):  # fmt: skip
        with pytest.raises(ValueError, match="scaler"):
            run.load_state_dict(training, {**whole, "scaler": {**own, **wrong}})
    run.load_state_dict(training, {**whole, "scaler": {**own, "scale": 2.0}})
