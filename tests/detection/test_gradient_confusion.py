import itertools

import numpy as np
import pytest
from support.detection import Regression, cosine, replay

import cpfast


@pytest.mark.not_emulated("no kernel runs")
@pytest.mark.parametrize("batches", [2, 4])
def test_cosines_are_those_of_the_batches_gradients(device, batches):
    regression = Regression(device=device)
    probe = regression.probe(needs=("batches",), batches=regression.batch)
    rule = cpfast.CriticalPeriodDetector("gradient_confusion", batches=batches).rule
    probe.begin(1)
    gradients = [regression.gradient(number) for number in range(batches)]
    cosines = [cosine(a, b) for a, b in itertools.combinations(gradients, 2)]
    expected = [np.max(cosines), np.mean(cosines), np.min(cosines)]
    assert rule.measure(probe).tolist() == pytest.approx(expected, abs=1e-5)
    assert probe.measured_samples == 6 * batches


def test_batches_that_are_shared_are_counted_once():
    regression = Regression()
    probe = regression.probe(needs=("batches",), batches=regression.batch)
    for _ in range(2):
        probe.begin(1)
        probe.gradient_persistence(2)
        assert probe.measured_samples == 12
        probe.gradient_similarities(3)
        assert probe.measured_samples == 18


def expected_end(values, fence, interval):
    for done in range(interval, len(values) + 1, interval):
        first, third = np.percentile(values[: done - 1], [25, 75])
        if values[done - 1] < first - fence * (third - first):
            return done
    return None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("fence", "interval"), [(1.5, 10), (0.5, 3)])
def test_it_is_a_low_outlier_among_earlier_epochs(seed, fence, interval):
    rng = np.random.default_rng(seed)
    values = 0.8 - 0.3 * (np.arange(60) > 30) + rng.normal(0, 0.05, 60)
    rows = np.stack([values, values - 0.1, values - 0.3], 1)
    detector = replay("gradient_confusion", rows, fence=fence, interval=interval)
    end = expected_end(values, fence, interval)
    assert end is not None and detector.end_epoch == end


def test_a_high_outlier_is_none():
    values = [0.5, 0.51, 0.49, 0.5, 0.52, 0.48, 0.5, 0.51, 0.49, 0.99]
    assert replay("gradient_confusion", [[v, v, v] for v in values]).end_epoch is None
    values[-1] = 0.01
    detector = replay("gradient_confusion", [[v, v, v] for v in values])
    assert detector.end_epoch == 10 and detector.censored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 1}, "batches: .* got 1"),
        ({"fence": -1.0}, "fence: .* got -1.0"),
        ({"interval": 2}, "interval: .* got 2"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cpfast.CriticalPeriodDetector("gradient_confusion", **options)
