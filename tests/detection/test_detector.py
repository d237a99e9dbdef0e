import copy
import math

import numpy as np
import pytest
import torch

from cpfast import CriticalPeriodDetector
from cpfast.detection import Criterion


def curve(epoch, total):
    """Rises fast, then ever more slowly, as the mean layer rotation does."""
    return 1 - math.exp(-6 * epoch / total)


def fire(detector, values):
    return [epoch for epoch, value in enumerate(values, 1) if detector.step(value, epoch)]


@pytest.mark.parametrize("total", [12, 50, 200])
def test_slope45_is_the_papers_rule(total):
    values = [curve(e, total) for e in range(1, total + 1)]
    scaled = np.linspace(0, 1, total)
    expected = next(
        e
        for e in range(5, total + 1)
        if np.degrees(np.arctan(np.polyfit(scaled[e - 5 : e], values[e - 5 : e], 1)[0])) < 45
    )
    detector = CriticalPeriodDetector("slope45", total)
    assert fire(detector, values) == [expected]
    assert detector.ended
    assert detector.end_epoch == expected
    assert f"epochs {expected - 4}-{expected} of {total}" in detector.reason
    assert len(detector.history) == total


def test_the_recorded_slopes_are_least_squares():
    values = [0.0, 0.3, 0.35, 0.6, 0.55, 0.8, 0.7]
    detector = CriticalPeriodDetector(total_epochs=11, window=4)
    fire(detector, values)
    x = np.arange(11) / 10
    for epoch, slope in detector.slopes:
        window = slice(epoch - 4, epoch)
        assert slope == pytest.approx(np.polyfit(x[window], values[window], 1)[0], rel=1e-9)
    assert [e for e, _ in detector.slopes] == [4, 5, 6, 7]


def test_45_degrees_is_not_below_45_degrees():
    def line(slope):
        return [slope * e / 8 for e in range(9)]  # eighths are exact in binary

    assert fire(CriticalPeriodDetector(total_epochs=9), line(1.0)) == []
    assert fire(CriticalPeriodDetector(total_epochs=9), line(0.999)) == [5]


def test_it_stays_ended_when_the_rotation_speeds_up_again():
    detector = CriticalPeriodDetector(total_epochs=10)
    assert fire(detector, [0, 0, 0, 0, 0, 5, 10, 15, 20, 25]) == [5]
    assert detector.end_epoch == 5


def test_fixed():
    detector = CriticalPeriodDetector("fixed", 20, at=3)
    assert fire(detector, [9.0] * 6) == [3]
    assert detector.reason == "fixed: epoch 3"


FALLS_TWICE = [0, 0.3, 0.6, 0.61, 0.9, 1.2, 1.21, 1.22, 1.23, 1.24]  # at 4, and from 7 on


@pytest.mark.parametrize(
    ("patience", "not_before", "expected"),
    [(1, None, 4), (2, None, 8), (3, None, 9), (1, 5, 7), (1, 7, 7), (3, 7, 9), (2, 8, 9),
     (1, 11, None), (5, None, None)],
)  # fmt: skip
def test_the_verdict_must_hold_and_cannot_come_before_its_time(patience, not_before, expected):
    detector = CriticalPeriodDetector(
        total_epochs=10, window=2, patience=patience, not_before=not_before
    )
    fire(detector, FALLS_TWICE)
    assert detector.end_epoch == expected
    if expected is not None:
        assert (f"for {patience} judged epochs in a row" in detector.reason) == (patience > 1)
    first = max(not_before or 2, 2) + patience - 1
    assert detector.censored == (expected == first)
    assert "censored" in (detector.reason or "") or not detector.censored


def test_a_given_epoch_stays_as_it_is_and_is_never_censored():
    detector = CriticalPeriodDetector("fixed", 20, at=1, patience=2, not_before=3)
    fire(detector, [9.0] * 3)
    assert detector.end_epoch == 1 and not detector.censored
    assert detector.reason == "fixed: epoch 1"


class EveryThird(Criterion):
    """Judges after epochs 2, 5, 8, 11 alone."""

    every, earliest = 3, 2

    def measure(self, probe):
        raise NotImplementedError

    def judge(self, history, moment):
        assert moment.epoch % 3 == 2
        return "low" if history[-1].values[0] < 0 else None


def test_patience_counts_the_epochs_that_are_judged():
    values = [-1, -1, 1, 1, 1, 1, 1, -1, 1, 1, -1, -1]
    for patience, expected in ((1, 2), (2, 11)):
        detector = CriticalPeriodDetector(EveryThird(), 12, patience=patience)
        assert fire(detector, values) == [expected]
        assert detector.censored == (patience == 1)


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8, 9])
def test_hysteresis_goes_on_where_it_stood(stop):
    options = {"total_epochs": 10, "window": 2, "patience": 3, "not_before": 3}
    whole, first = CriticalPeriodDetector(**options), CriticalPeriodDetector(**options)
    fire(whole, FALLS_TWICE)
    fire(first, FALLS_TWICE[:stop])
    resumed = CriticalPeriodDetector()
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    for epoch in range(stop + 1, 11):
        resumed.step(FALLS_TWICE[epoch - 1], epoch)
    assert resumed.state_dict() == whole.state_dict()
    assert (resumed.end_epoch, resumed.censored) == (9, whole.censored)
    assert whole.state_dict()["patience"] == 3


def test_a_state_of_before_there_was_hysteresis_is_loaded():
    detector = CriticalPeriodDetector(total_epochs=10, window=2)
    fire(detector, FALLS_TWICE)
    state = detector.state_dict()
    old = {key: state[key] for key in state if key not in ("patience", "not_before")}
    resumed = CriticalPeriodDetector(patience=4, not_before=9)
    resumed.load_state_dict(old)
    assert resumed.state_dict() == state and (resumed.patience, resumed.not_before) == (1, None)


@pytest.mark.not_emulated("no kernel runs")
def test_tensors_are_read(device):
    detector = CriticalPeriodDetector("fixed", 20, at=1)
    assert detector.step(torch.tensor(0.25, device=device), 1)
    assert detector.history == [(1, 0.25)]


@pytest.mark.parametrize("stop", [1, 4, 5, 9, 15])
def test_saved_and_loaded_it_goes_on_as_before(stop):
    values = [curve(e, 20) for e in range(1, 21)]
    whole = CriticalPeriodDetector(total_epochs=20)
    fire(whole, values)
    first = CriticalPeriodDetector(total_epochs=20)
    fire(first, values[:stop])
    resumed = CriticalPeriodDetector("fixed", 7, at=2)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    for epoch in range(stop + 1, 21):
        resumed.step(values[epoch - 1], epoch)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_and_not_recorded(value):
    detector = CriticalPeriodDetector()
    with pytest.raises(ValueError, match=f"value: .* after epoch 1, got {value}"):
        detector.step(value, 1)
    assert detector.history == []


def test_epochs_must_increase():
    detector = CriticalPeriodDetector()
    detector.step(0.1, 3)
    with pytest.raises(ValueError, match="epoch: expected more than 3, got 3"):
        detector.step(0.2, 3)
    with pytest.raises(ValueError, match="epoch: expected more than 0, got 0"):
        CriticalPeriodDetector().step(0.2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "magic"}, "criterion: .* got 'magic'"),
        ({"total_epochs": 0}, "total_epochs: .* got 0"),
        ({"window": 1}, "window: .* got 1"),
        ({"criterion": "fixed"}, "at: .* got None"),
        ({"criterion": "fixed", "at": 0}, "at: .* got 0"),
        ({"criterion": "fixed", "at": 7, "total_epochs": 6}, "at: .* 6, got 7"),
        ({"patience": 0}, "patience: .* got 0"),
        ({"not_before": 0}, "not_before: .* got 0"),
        ({"at": 3}, "at: .* got 3 for 'slope45'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CriticalPeriodDetector(**arguments)
