import numpy as np
import pytest
import torch
from support.detection import CLASSES, SAMPLES, Regression, replay

import cpfast
from cpfast.detection.extra import sampled


def exact(regression):
    """E_x E_{y~p} |d log p(y|x)|^2 by going over all labels."""
    x, p, _ = regression.numbers()
    traces = [
        p[:, label] * ((p - np.eye(CLASSES)[label]) ** 2).sum(1) * (x * x).sum(1)
        for label in range(CLASSES)
    ]
    return np.sum(traces, 0).mean()


def empirical(regression):
    """With the true labels: another thing."""
    x, p, y = regression.numbers()
    return (((p - np.eye(CLASSES)[y]) ** 2).sum(1) * (x * x).sum(1)).mean()


@pytest.mark.not_emulated("no kernel runs")
def test_it_is_the_trace_in_expectation(device):
    regression = Regression(device=device)
    estimates = []
    for seed in range(150):
        probe = regression.probe(needs=("batches",), batches=regression.batch, seed=seed)
        probe.begin(1)
        estimates.append(float(probe.fisher_trace(4)))
        assert probe.measured_samples == SAMPLES
    estimates, true = np.array(estimates), exact(regression)
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert error < 0.1 * true
    assert abs(estimates.mean() - true) < 4 * error
    # told apart from what the true labels give
    assert abs(empirical(regression) - true) > 8 * error


def test_a_batch_counts_by_its_sampled_labels():
    """One batch, with the labels of the draw: n times the squared norm of the mean gradient."""
    regression = Regression()
    probe = regression.probe(needs=("batches",), batches=regression.batch, seed=3)
    probe.begin(1)
    x, p, _ = regression.numbers(np.arange(6))
    found = float(probe.fisher_trace(1))
    possible = []
    for labels in np.ndindex(*[CLASSES] * 6):
        gradient = (p - np.eye(CLASSES)[list(labels)]).T @ x / 6
        possible.append(6 * (gradient**2).sum())
    assert np.min(np.abs(np.array(possible) / found - 1)) < 1e-4
    assert float(probe.fisher_trace(1)) == found and probe.measured_samples == 6  # measured once


def test_labels_are_drawn_by_their_probability():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    labels = sampled(logits.expand(10_000, 4), uniform)
    shares = np.bincount(labels.numpy(), minlength=4) / 10_000
    np.testing.assert_allclose(shares, logits.softmax(1)[0].numpy(), atol=2e-4)
    extreme = sampled(torch.tensor([[0.0, -200.0], [-200.0, 0.0]]), torch.tensor([0.999999, 1e-7]))
    assert extreme.tolist() == [0, 1]


def test_it_is_measured_in_evaluation_mode_and_leaves_frozen_parameters_out():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 3),
        torch.nn.BatchNorm1d(3),
    )  # fmt: skip
    model(torch.randn(30, 4))  # running statistics of its own
    model[0].requires_grad_(False)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    probe = cpfast.detection.probe.ModelProbe(
        cpfast.LayerRotation(model), needs=("batches",), batches=lambda number: (model(x), y)
    )
    model[1].eval()  # stays so
    probe.begin(1)
    gradient = probe._gradient(0)
    assert [module.training for module in model] == [True, False, True, True, True]
    model.eval()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]))
    assert not gradient[:30].any() and gradient[30:].any()


def test_it_ends_where_it_has_fallen_from_its_peak():
    rows = [1.0, 4.0, 10.0, 7.0, 5.01, 5.0, 20.0, 1.0]
    detector = replay("fisher", rows)
    shares = np.array(rows) / np.maximum.accumulate(rows)
    assert [share for _, share in detector.statistics] == pytest.approx(shares)
    assert detector.end_epoch == 1 + np.flatnonzero(shares <= 0.5)[0] == 6
    assert replay("fisher", rows, fall=0.2).end_epoch == 8
    assert replay("fisher", [0.0, 0.0]).end_epoch is None
    for options, message in (({"fall": 1.0}, "fall: .* 1.0"), ({"batches": 0}, "batches: .* 0")):
        with pytest.raises(ValueError, match=message):
            cpfast.CriticalPeriodDetector("fisher", **options)
