"""Running statistics measured anew: those of the weights on the data, and nothing else changed."""

import pytest
import torch
from support.toy_comparison import make_config, scratch, toy_data

from cpfast.studies import normalisation
from cpfast.studies.store import entry_of
from cpfast.train import loop
from cpfast.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")


def test_they_are_those_of_the_weights_on_the_data(tmp_path):
    config, data = make_config(epochs=2, criterion="slope45", at=None), toy_data()
    state = scratch(tmp_path / "run", config).checkpoint()["model"]
    training = Training(config, data)
    training.model.load_state_dict(dict(state))
    normalisation.measure(training)
    made = training.model.state_dict()
    for name, value in made.items():
        is_statistic = "running" in name or "num_batches" in name
        assert torch.equal(value, state[name]) != is_statistic, name
    assert training.model.norm1.momentum == 0.01
    images = data.train_images.float().permute(0, 3, 1, 2) / 255
    images -= data.mean().permute(2, 0, 1)
    model = training.model.train()
    with torch.no_grad():
        x = model.conv1(images)
        torch.testing.assert_close(made["norm1.running_mean"], x.mean((0, 2, 3)))
        torch.testing.assert_close(made["norm1.running_var"], x.var((0, 2, 3)))
        statistics = {name: value.clone() for name, value in made.items()}
        x = model.conv2(model.norm1(x).relu())
    torch.testing.assert_close(statistics["norm2.running_var"], x.var((0, 2, 3)))


def test_a_test_by_them_leaves_the_run_as_it_is(tmp_path):
    config, data = make_config(epochs=2, criterion="slope45", at=None), toy_data()
    folder = scratch(tmp_path / "run", config)
    before = (folder.path / "last.pt").read_bytes()
    entry = entry_of(folder, 0, None)
    found = normalisation.tested(entry, folder, data)
    assert {key for key in entry if found[key] != entry[key]} <= {"test_loss", "test_accuracy"}
    training = Training(config, data)
    training.model.load_state_dict(dict(folder.checkpoint()["model"]))
    assert entry["test_loss"] == loop.evaluate(training)[0]
    normalisation.measure(training)
    assert found["test_loss"] == loop.evaluate(training)[0] != entry["test_loss"]
    assert (folder.path / "last.pt").read_bytes() == before
    diverged = entry_of(folder, 0, "it diverged")
    assert normalisation.tested(diverged, folder, data) == diverged
