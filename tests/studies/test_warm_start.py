"""Warm starts: what each arm begins with, what is held against what, stops."""

import json

import numpy as np
import pytest
import torch
from support.toy_comparison import (
    check_picture,
    damage,
    draw,
    essence,
    made_up,
    make_config,
    run_with_stops,
    told,
    toy_data,
)

from cpfast import studies
from cpfast.studies import normalisation, store
from cpfast.studies.warm_start import WarmStart, table
from cpfast.studies.warm_start.begin import Begin, first_part, set_weights
from cpfast.train import loop, models
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
ARMS = ["first", "scratch", "warm", "shrink0.4"]


def make_plan(seeds=(0,), **given):
    config = make_config(
        criterion="slope45", at=None, epochs=3, repeats=1, detect=False, eval_every=1
    )
    return WarmStart(config, tuple(seeds), **{"shrinks": (0.4,), **given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("warm")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


def test_the_first_part_has_its_share_of_each_class_and_is_the_seeds():
    data = toy_data()
    part, other = first_part(data, 0.5, 0), first_part(data, 0.5, 1)
    assert part.train_labels.bincount().tolist() == [4, 4, 4]
    assert part.train_images.shape == (12, 6, 6, 1) and part.test_size == data.test_size
    assert not torch.equal(part.train_images, other.train_images)


def test_weights_are_shrunk_and_perturbed_by_a_fresh_network():
    training = Training(make_plan().config, toy_data())
    generator = torch.Generator().manual_seed(1)
    trained = {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in training.model.state_dict().items()
    }
    set_weights(training, trained, Begin("some", 0.4, 0.1))
    fresh = models.build("cnn", (6, 6, 1), 3, 2**31)
    own = models.build("cnn", (6, 6, 1), 3, 0)
    assert not torch.equal(fresh.conv1.weight, own.conv1.weight)
    for name, value in training.model.named_parameters():
        expected = 0.4 * trained[name].numpy() + 0.1 * fresh.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_running_statistics_are_those_of_the_weights_that_are_begun_with():
    training = Training(make_plan().config, toy_data())
    trained = {name: value.clone() for name, value in training.model.state_dict().items()}
    set_weights(training, trained, Begin("some", 0.3, 0.2))
    images = training.data.train_images.float() / 255 - training.data.mean()
    with torch.no_grad():
        first = training.model.conv1(images.permute(0, 3, 1, 2))
    norm = training.model.norm1
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.01
    # a warm start keeps what it had
    set_weights(training, trained, Begin("warm", 1.0, 0.0))
    assert all(torch.equal(v, trained[k]) for k, v in training.model.state_dict().items())


def test_each_arm_begins_with_what_it_says_and_sees_its_data(finished):
    out, results = finished
    assert [(e["seed"], e["arm"]) for e in results["runs"]] == [
        (seed, arm) for seed in (0, 1) for arm in ARMS
    ]
    samples = {e["arm"]: e["forward_samples"] for e in results["runs"]}
    assert samples == {"first": 32, "scratch": 72, "warm": 72, "shrink0.4": 72}
    # an epoch from the stored weights, by hand, is the arm's first
    training = Training(make_plan().config, toy_data(), [])
    trained = RunFolder(out / "seed0/first").checkpoint()["model"]
    training.model.load_state_dict(dict(trained))
    training.batches.train = _plain(training.batches.train)
    line = loop.train_epoch(training)
    assert line["train_loss"] == RunFolder(out / "seed0/warm").metrics()[0]["train_loss"]


def _plain(train):
    return lambda index, draw, shape: train(index, draw, shape._replace(augment=0.0))


def test_accuracy_is_by_the_statistics_of_what_was_trained_on(finished):
    for arm, data in (("first", first_part(toy_data(), 0.5, 0)), ("warm", toy_data())):
        training = Training(make_plan().config, data)
        state = RunFolder(finished[0] / "seed0" / arm).checkpoint()["model"]
        training.model.load_state_dict(dict(state))
        normalisation.measure(training)
        entry = studies.find(finished[1], arm=arm, seed=0)
        assert (entry["test_loss"], entry["test_accuracy"]) == loop.evaluate(training)


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"]) == make_plan((0, 1)).wanted({})
    assert essence(results) == essence(finished[1])
    assert json.loads((finished[0] / "results.json").read_text()) == finished[1]


def test_without_the_first_training_there_is_no_warm_start(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if training.data.train_size == 12 and training.epoch == 1:
            raise Diverged("training diverged: epoch 2")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = studies.run(make_plan(), toy_data(), tmp_path)
    reason = "not run: the training on the first part diverged"
    assert [e["diverged"] for e in results["runs"]] == [
        "training diverged: epoch 2", None, reason, reason
    ]  # fmt: skip
    assert f"warm, seed 0: {reason}." in told(results)


@pytest.mark.parametrize("key", ["shrinks", "noise", "augment", "arm", *store.ENTRY])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


@pytest.mark.needs("scipy")
def test_differences_are_paired_by_seed():
    values = {"first": [0.7, 0.7, 0.7], "scratch": [0.90, 0.94, 0.98], "warm": [0.88, 0.92, 0.96],
              "shrink0.4": [0.91, 0.93, 0.98]}  # fmt: skip
    runs = [
        ({"arm": arm, "seed": seed}, value)
        for arm, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    results = made_up(make_plan((0, 1, 2)), runs)
    assert table.against(results, "warm", "scratch") == pytest.approx((-2.0, 0.0))
    # 3, 1, 2: t(0.975; 2) = 4.3027, of a deviation of 1
    mended = table.against(results, "shrink0.4", "warm")
    assert mended == pytest.approx((2.0, 4.3027 / 3**0.5), rel=1e-4)
    text = told(results)
    assert "Warm start against training from scratch: -2.00 ± 0.00 points (seen)." in text
    assert "perturbed by 0.1, against training from scratch: +0.00 ± 2.48 points (not seen" in text


@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "warm-start.png", tmp_path / "all.png")
    check_picture(tmp_path / "all.png", "#D55E00", "#0072B2", "#7F7F7F", "#009E73")
    draw({**finished[1], "runs": finished[1]["runs"][:1]}, "warm-start.png", tmp_path / "part.png")
