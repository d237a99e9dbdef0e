import numpy as np
import pytest
import torch
from support.detection import Regression, replay

import cpfast


def expected_end(values, window, growth, warmup):
    for done in range(1, len(values) + 1):
        padded = np.concatenate([np.zeros(window + 2), values[:done]])
        before = max(padded[-window - 1 : -1].mean(), 1e-7)
        if not ((padded[-window:].mean() - before) / before > growth or done <= warmup):
            return done
    return None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("window", "growth", "warmup"), [(10, 0.01, 5), (4, 0.05, 0), (3, 0, 9)])
def test_it_is_the_sources_rule(seed, window, growth, warmup):
    rng = np.random.default_rng(seed)
    values = np.exp(0.15 * np.arange(40) - 0.004 * np.arange(40) ** 2 + rng.normal(0, 0.2, 40))
    options = {"window": window, "growth": growth, "warmup": warmup}
    detector = replay("gradient_norm_growth", values, **options)
    end = expected_end(values, **options)
    assert end is not None and detector.end_epoch == end


def test_gradients_that_vanish_end_it_as_soon_as_they_may():
    detector = replay("gradient_norm_growth", [0.0] * 8)
    assert detector.end_epoch == 6 and detector.censored


@pytest.mark.not_emulated("no kernel runs")
@pytest.mark.parametrize("given", [True, False])
def test_it_is_the_mean_over_the_steps_of_all_parameters(device, given):
    regression = Regression(device=device)
    weight, bias = regression.model.parameters()
    groups = [{"params": [weight], "lr": torch.tensor(0.3)}, {"params": [bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    probe = regression.probe(needs=("gradients",), optimizer=optimizer if given else None)
    rule = cpfast.CriticalPeriodDetector("gradient_norm_growth").rule
    rates = (0.3, 0.1) if given else (1.0, 1.0)
    for _ in range(2):
        expected = []
        probe.begin(3)
        for step in range(3):
            gradient = regression.gradient(step)
            expected.append(
                rates[0] * (gradient[:, :-1] ** 2).sum() + rates[1] * (gradient[:, -1] ** 2).sum()
            )
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(*regression.batch(step)).backward()
            optimizer.step()
            probe.after_step()
        assert rule.measure(probe).tolist() == [pytest.approx(np.mean(expected), rel=1e-4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: .* got 0"),
        ({"growth": float("nan")}, "growth: .* got nan"),
        ({"warmup": -1}, "warmup: .* got -1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cpfast.CriticalPeriodDetector("gradient_norm_growth", **options)
