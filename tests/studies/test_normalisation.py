"""Running statistics measured anew: those of the weights on the data, and nothing else changed."""

import pytest
import torch
from support.toy_comparison import make_config, scratch, toy_data

from cpfast.studies.normalisation import measured
from cpfast.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")


def test_they_are_those_of_the_weights_on_the_data(tmp_path):
    config, data = make_config(epochs=2, criterion="slope45", at=None), toy_data()
    state = scratch(tmp_path / "run", config).checkpoint()
    made = measured(state, config, data)
    assert {k for k in state if made[k] is not state[k]} == {"model"}
    for name, value in made["model"].items():
        is_statistic = "running" in name or "num_batches" in name
        assert torch.equal(value, state["model"][name]) != is_statistic, name
    training = Training(config, data)
    training.model.load_state_dict(dict(state["model"]))
    images = data.train_images.float().permute(0, 3, 1, 2) / 255
    images -= data.mean().permute(2, 0, 1)
    model = training.model.train()
    with torch.no_grad():
        x = model.conv1(images)
        torch.testing.assert_close(made["model"]["norm1.running_mean"], x.mean((0, 2, 3)))
        torch.testing.assert_close(made["model"]["norm1.running_var"], x.var((0, 2, 3)))
        x = model.conv2(model.norm1(x).relu())
    torch.testing.assert_close(made["model"]["norm2.running_var"], x.var((0, 2, 3)))
    # in evaluation they do what the batch's own do, but for the n / (n - 1) of variances
    index = torch.arange(24)
    with torch.no_grad():
        expected = model(images)
        model.load_state_dict(made["model"])
        found = model.eval()(training.batches.train(index, index, 0.0)[0])
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
