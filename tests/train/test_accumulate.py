"""--accumulate N: steps of N batches equal steps of one batch N times as large."""

import pytest
import torch
from support.toy_training import (
    TRAIN,
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    toy_text,
)

from cpfast.recipes import recipes
from cpfast.train import checks, run
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")
# The last group of an epoch is partial: 30 samples, 12 a step.
OPTIONS = {
    "model": "support.toy_training:plain_network", "optimizer": "sgd", "epochs": 3, "at": 1,
    "eval_every": 1,
}  # fmt: skip
TEXT = {
    "data": "python-docs", "model": "transformer", "repeats": 1, "optimizer": "sgd", "epochs": 3,
    "at": 1, "eval_every": 1,
}  # fmt: skip


def trained(path, samples, **options):
    config = make_config(**options)
    folder = start(path, config)
    training = run.train(config, samples, folder)
    return training, folder.metrics()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full"},
        {"method": "detector+prune", "repeats": 2},
        {"method": "growing-batch"},
        {"method": "full", "clip": 0.1, "class_weight": "balanced", "label_smoothing": 0.1},
        {"method": "full", "ema": 0.9},
    ],
)
def test_it_is_one_large_batch(tmp_path, options):
    base = {**OPTIONS, "lr": 0.02, **options}
    few, lines = trained(tmp_path / "few", toy_data(side=8), **base, batch_size=4, accumulate=3)
    large, others = trained(tmp_path / "large", toy_data(side=8), **base, batch_size=12)
    for a, b in zip(few.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    same = (
        "planned_samples", "forward_samples", "backward_samples", "full_samples", "lr", "period_end"
    )  # fmt: skip
    for line, other in zip(lines, others, strict=True):
        assert {name: line[name] for name in same} == {name: other[name] for name in same}
        for name in ("train_loss", "test_loss", "rotation_mean"):
            assert line[name] == pytest.approx(other[name], rel=1e-3), name
    assert torch.equal(few.stream.state_dict()["index"], large.stream.state_dict()["index"])


def test_tokens_count_as_in_one_large_batch(tmp_path):
    few, lines = trained(tmp_path / "few", toy_text(), **TEXT, batch_size=3, accumulate=4)
    large, others = trained(tmp_path / "large", toy_text(), **TEXT, batch_size=12)
    for a, b in zip(few.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [line["backward_samples"] for line in lines] == [24, 36, 24]
    assert [line["backward_samples"] for line in others] == [24, 36, 24]


@pytest.mark.parametrize("policy", ["infobatch", "selective_backprop"])
@pytest.mark.parametrize("method", ["detector+prune", "growing-batch", "fast"])
def test_resume_equals_no_stop_to_the_bit(tmp_path, method, policy):
    assert method in recipes
    config = make_config(
        method=method, policy=policy, accumulate=2, batch_size=5, mixup=0.2, epochs=8
    )
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, toy_data(), whole)
    for epochs in (1, 3, 8):
        run.train(config, toy_data(), parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)
    for line in whole.metrics():
        assert line["forward_samples"] == line["backward_samples"] + line["scored_samples"]


def test_a_policy_that_chooses_within_batches_chooses_within_each(tmp_path):
    options = {"method": "prune", "policy": "selective_backprop", "repeats": 1, "anneal": 1.0}
    _, lines = trained(
        tmp_path / "run", toy_data(), **options, epochs=6, batch_size=6, accumulate=2, keep=0.5
    )
    # 24 or 36 samples an epoch, in steps of two batches, of which each leaves three
    chosen = [line for line in lines if line["scored_samples"]]
    assert chosen
    for line in chosen:
        assert line["backward_samples"] % 6 == 0
        assert line["backward_samples"] < line["forward_samples"]


def test_the_learning_rate_and_the_epochs_follow_the_samples_of_a_step():
    def made(**options):
        return Config.from_options({"preset": "fast", **options}, 1000)

    one, few = made(batch_size=64), made(batch_size=16, accumulate=4)
    assert (few.lr, few.epochs, few.step_size) == (one.lr, one.epochs, 64)
    assert Config.from_options({"batch_size": 8, "accumulate": 4}).lr == pytest.approx(0.1)


def test_more_samples_than_there_are():
    config = make_config(batch_size=8, accumulate=4)
    message = f"^--batch-size 8 with --accumulate 4: there are only {TRAIN} samples to train on$"
    with pytest.raises(UserError, match=message):
        checks.check(config, toy_data(), Ranks())
    with pytest.raises(UserError, match="^--accumulate must be at least 1, got 0$"):
        make_config(accumulate=0)
