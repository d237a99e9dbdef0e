import numpy as np
import pytest
import torch
from support.detection import replay

import cpfast
from cpfast.detection.probe import ModelProbe


def expected_end(norms, threshold, interval):
    """Epochs from 0 as the source counts them, each layer by itself."""
    for epoch in range(0, len(norms), interval):
        critical = []
        for layer in range(norms.shape[1]):
            if epoch == 0 or norms[epoch - interval, layer] == 0:
                critical.append(True)
                continue
            before, now = norms[epoch - interval, layer], norms[epoch, layer]
            critical.append(np.abs(before - now) / before >= threshold)
        if not np.any(critical):
            return epoch + 1
    return None


@pytest.mark.parametrize("interval", [10, 5, 1])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_sources_rule(seed, interval):
    rng = np.random.default_rng(seed)
    # steps that grow smaller, so that it ends somewhere
    spread = 0.6 * 0.97 ** np.arange(80)[:, None]
    norms = np.exp(np.cumsum(spread * rng.standard_normal((80, 4)), 0))
    norms[interval, 2] = 0.0  # critical in the comparison after it
    detector = replay("accordion", norms, interval=interval)
    assert detector.end_epoch == expected_end(norms, 0.5, interval)
    assert detector.end_epoch not in (1, 1 + 2 * interval)


def test_just_half_is_critical_and_below_is_not():
    rows = [[2.0, 1.0]] + [[9.0, 9.0]] * 9
    assert replay("accordion", [*rows, [1.0, 1.0]]).end_epoch is None
    detector = replay("accordion", [*rows, [1.01, 1.0]])
    assert detector.end_epoch == 11 and detector.censored
    assert detector.statistics == [(11, pytest.approx(0.495))]


def test_layers_without_a_gradient_do_not_count():
    rows = [[np.nan, 1.0, 1.0]] * 10
    assert replay("accordion", [*rows, [1.0, np.nan, 1.2]]).end_epoch == 11
    assert replay("accordion", [*rows, [1.0, np.nan, 1.7]]).end_epoch is None
    assert replay("accordion", [*rows, [1.0, np.nan, np.nan]]).end_epoch is None


@pytest.mark.not_emulated("no kernel runs")
@pytest.mark.parametrize("scaled", [False, True])
def test_norms_are_those_of_the_sum_over_the_epochs_steps(device, scaled):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = ModelProbe(
        cpfast.LayerRotation(model), optimizer=optimizer, needs=("gradients",), scaled=scaled
    )
    for frozen in (False, True):
        model[0].weight.requires_grad_(not frozen)
        sums, steps = {0: 0.0, 2: 0.0}, 7
        probe.begin(steps)
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.randn(5, 4, device=device)).square().mean().backward()
            if scaled and step == 3:  # overflowed: its step is not taken
                model[2].weight.grad[0, 0] = torch.inf
            else:
                optimizer.step()
                for layer in sums:
                    gradient = model[layer].weight.grad
                    if gradient is not None:
                        sums[layer] = sums[layer] + gradient.double().cpu().numpy()
            probe.after_step()
        first, last = probe.gradients().norms.tolist()
        assert last == pytest.approx(np.linalg.norm(sums[2]), rel=1e-5)
        assert np.isnan(first) if frozen else first == pytest.approx(np.linalg.norm(sums[0]), 1e-5)


def test_gradients_that_are_gone_are_missed():
    model = torch.nn.Linear(3, 2)
    probe = ModelProbe(cpfast.LayerRotation(model), needs=("gradients",))
    probe.begin(1)
    with pytest.raises(RuntimeError, match=r"call after_step\(\) before zero_grad\(\)"):
        probe.after_step()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 0.0}, "threshold: .* got 0.0"), ({"interval": 0}, "interval: .* got 0")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cpfast.CriticalPeriodDetector("accordion", **options)
