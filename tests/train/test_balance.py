"""Classes of uneven sizes: what is said, and what weighing them does."""

import dataclasses

import pytest
import torch
from support.toy_training import (
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    toy_text,
)

from cpfast.cli.start import header
from cpfast.train import balance, loop, run
from cpfast.train.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def uneven():
    labels = torch.tensor([0] * 20 + [1] * 8 + [2] * 2)
    return dataclasses.replace(toy_data(), train_labels=labels)


def test_weights_are_balanced_and_one_in_the_mean():
    data = uneven()
    weights = balance.weights(data)
    torch.testing.assert_close(weights, torch.tensor([0.5, 30 / 24, 5.0]))
    assert weights[data.train_labels].mean().item() == pytest.approx(1)
    # a class that nobody has does not count
    absent = dataclasses.replace(data, classes=("a", "b", "c", "d"))
    torch.testing.assert_close(balance.weights(absent)[:3], weights)
    assert balance.weights(toy_text()) is None


def test_the_header_says_so_where_one_is_more_than_three_times_another():
    config = make_config()
    told = "classes are uneven: 20 training samples of a, 2 of c (see --class-weight balanced)"
    assert told in header(config, uneven(), 1)
    assert "2 of c (weighed alike)" in header(config.replace(class_weight="balanced"), uneven(), 1)
    assert "uneven" not in header(config, toy_data(), 1)
    labels = torch.tensor([0] * 15 + [1] * 10 + [2] * 5)
    three_times = dataclasses.replace(toy_data(), train_labels=labels)
    assert balance.describe(three_times) == "" == balance.describe(toy_text())


def test_a_step_weighs_each_loss():
    config, data = make_config(class_weight="balanced", batch_size=30, flip=False), uneven()
    gradients = []
    for weighed in (True, False):
        training = loop.Training(config if weighed else config.replace(class_weight="none"), data)
        training.stream.extend(torch.arange(30), torch.zeros(30).long(), torch.ones(30))
        training.pruner.plan(0)
        training.model.train()
        inputs, targets = training.batches.train(torch.arange(30), torch.zeros(30).long())
        expected = torch.nn.functional.cross_entropy(
            training.model(inputs), targets, reduction="none"
        )
        if weighed:
            expected = expected * balance.weights(data)[targets]
        training.loss_sum.zero_()
        training.step()
        assert training.loss_sum.item() == pytest.approx(expected.mean().item(), rel=1e-4)
        gradients.append(training.model.head.weight.grad.clone())
    assert not torch.allclose(*gradients, rtol=0.1)


def test_it_resumes_to_the_bit(tmp_path):
    config = make_config(class_weight="balanced", method="detector+prune")
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, uneven(), whole)
    for epochs in (1, 4, 6):
        run.train(config, uneven(), parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)


def test_text_has_no_classes():
    config = make_config(data="python-docs", model="transformer", class_weight="balanced")
    with pytest.raises(UserError, match=r"^--class-weight balanced: python-docs is text"):
        loop.Training(config, toy_text())
