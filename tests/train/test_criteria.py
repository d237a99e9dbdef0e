"""Criteria in the training loop: each resumes to the bit, and what does not go is refused."""

import pytest
import torch
from support.host_reads import counted
from support.toy_training import assert_same_checkpoint, make_config, start, toy_data, without_times

from cpfast.detection import criteria
from cpfast.train import loop, run
from cpfast.train.data import TextData
from cpfast.train.errors import Diverged, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(criterion, **options):
    at = 2 if criterion == "fixed" else None
    return make_config(criterion=criterion, at=at, method="detector", **options)


def text():
    tokens = torch.randint(7, (12, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return TextData(tokens, tokens[:6], "abcdefg", "toy")


@pytest.mark.parametrize("criterion", criteria)
@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "method": "freeze"}])
def test_it_trains_and_resumes_to_the_bit(tmp_path, criterion, options):
    config, data = config_of(criterion).replace(**options), toy_data()
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    training = run.train(config, data, whole)
    for epochs in (1, 4, 6):
        run.train(config, data, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())
    stops = "batches" in training.detector.rule.needs and training.detector.ended
    assert len(training.detector.history) == (training.detector.end_epoch if stops else 6)


@pytest.mark.parametrize("criterion", sorted(set(criteria) - {"early_bird"}))
def test_it_trains_on_text(tmp_path, criterion):
    config = config_of(criterion, model="transformer", data="python-docs", epochs=2, batch_size=4)
    run.train(config, text(), start(tmp_path / "run", config))


def test_a_model_without_what_it_needs_is_refused_in_a_line():
    config = config_of("early_bird", model="transformer", data="python-docs", batch_size=4)
    with pytest.raises(
        UserError, match=r"^--criterion early_bird: needs batch normalisation .* has none$"
    ):
        loop.Training(config, text())


@pytest.mark.parametrize("criterion", criteria)
def test_a_step_does_not_wait_for_what_it_measures(criterion):
    training = loop.Training(config_of(criterion), toy_data())
    training.stream.extend(torch.arange(24), torch.zeros(24).long(), torch.ones(24))
    training.probe.begin(2)
    training.model.train()
    training.step()
    with counted() as reads:
        training.step()
    assert reads == []


def test_what_is_measured_by_does_not_change_the_training(tmp_path):
    weights = []
    for criterion in ("fixed", "fisher", "gradient_predictiveness", "accordion"):
        config = config_of(criterion, epochs=2).replace(method="full")
        training = run.train(config, toy_data(), start(tmp_path / criterion, config))
        weights.append(training.model.state_dict())
    for other in weights[1:]:
        assert all(map(torch.equal, weights[0].values(), other.values()))


def test_the_batches_are_the_same_each_time_and_not_augmented():
    training = loop.Training(config_of("fisher"), toy_data())
    batches = loop.batches.fixed(training.config, training.data, training.batches, training.model)
    training.model.eval()
    with torch.no_grad():
        first, again, other = batches(0), batches(0), batches(1)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])
        seen = torch.cat([batches(number)[0] for number in range(4)])[:30]
        everyone = training.model(training.batches.plain(torch.arange(30))[0])
    # each of the 30 samples once, before it begins again
    distances = torch.cdist(seen, everyone)
    assert sorted(distances.argmin(1).tolist()) == list(range(30))
    assert distances.amin(1).max() < 1e-3


def test_a_measure_that_is_not_finite_is_divergence(monkeypatch):
    training = loop.Training(config_of("fisher"), toy_data())
    monkeypatch.setattr(
        training.detector.rule, "measure", lambda probe: torch.tensor([float("inf")])
    )
    with pytest.raises(Diverged, match="the measure of fisher of epoch 1 is inf"):
        loop.train_epoch(training)
