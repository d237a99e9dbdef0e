import copy

import numpy as np
import pytest
import torch
from support.detection import CLASSES, FEATURES, Regression, cosine, replay

import cpfast


@pytest.mark.not_emulated("no kernel runs")
def test_cosines_are_those_with_the_same_batch_an_epoch_ago(device):
    regression = Regression(device=device)
    probe = regression.probe(needs=("batches",), batches=regression.batch)
    rule = cpfast.CriticalPeriodDetector("gradient_predictiveness", batches=3).rule
    before, generator = None, torch.Generator().manual_seed(1)
    for epoch in range(4):
        probe.begin(1)
        gradients = [regression.gradient(number) for number in range(3)]
        measured = rule.measure(probe).tolist()
        assert rule.measure(probe).tolist() == pytest.approx(measured, nan_ok=True)  # once
        if before is None:
            assert np.isnan(measured).all()
        else:
            cosines = [cosine(a, b) for a, b in zip(before, gradients, strict=True)]
            assert measured == pytest.approx([np.mean(cosines), np.min(cosines)], abs=1e-5)
        before = gradients
        if epoch == 1:  # the next epoch is another process's
            state = copy.deepcopy(probe.state_dict())
            probe = regression.probe(needs=("batches",), batches=regression.batch)
            probe.load_state_dict(state)
        with torch.no_grad():
            for parameter in regression.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.5 * noise.to(device)


def test_a_state_of_another_model_is_refused():
    regression = Regression()
    probe = regression.probe(needs=("batches",), batches=regression.batch)
    size = CLASSES * (FEATURES + 1)
    for wrong in (torch.zeros(size + 1), torch.zeros(size).double(), None):
        state = {**probe.state_dict(), "gradients": {"1": [wrong]}}
        with pytest.raises(ValueError, match=r"^state_dict\['gradients'\]\['1'\]\[0\]: expected"):
            probe.load_state_dict(state)
    probe.load_state_dict({**probe.state_dict(), "gradients": {"1": [torch.zeros(size)]}})
    probe.begin(1)
    assert probe.gradient_persistence(1).tolist() == [0.0]  # of no gradient


def test_it_ends_below_the_threshold():
    means = [np.nan, 0.9, 0.11, 0.1, 0.09, 0.5]
    detector = replay("gradient_predictiveness", [[mean, mean - 0.2] for mean in means])
    assert detector.end_epoch == 5
    assert [epoch for epoch, _ in detector.statistics] == [2, 3, 4, 5, 6]
    rows = [[mean, -1.0] for mean in means]
    assert replay("gradient_predictiveness", rows, threshold=0.95).censored
    for options, message in (
        ({"threshold": 1.0}, "threshold: .* got 1.0"),
        ({"batches": 0}, "batches: .* got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            cpfast.CriticalPeriodDetector("gradient_predictiveness", **options)


def test_a_source_of_batches_is_needed():
    with pytest.raises(ValueError, match="batches: expected a source of them"):
        Regression().probe(needs=("batches",))
    with pytest.raises(ValueError, match="needs: expected some of paths, .* got 'magic'"):
        Regression().probe(needs=("magic",))
