import copy

import numpy as np
import pytest
import torch

import cpfast
from cpfast.detection.probe import ModelProbe, path_null


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 400])
def test_the_null_is_that_of_a_random_walk_with_momentum(momentum, nesterov, steps):
    # torch's own optimizer on gradients that are noise alone, after its momentum has settled
    dimensions, warm_up = 40_000, 300
    w = torch.nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))
    nesterov = nesterov and momentum > 0
    optimizer = torch.optim.SGD([w], 1.0, momentum=momentum, nesterov=nesterov)
    g = torch.Generator().manual_seed(0)
    squared, first = 0.0, None
    for step in range(warm_up + steps):
        w.grad = torch.randn(dimensions, generator=g, dtype=torch.float64)
        before = w.detach().clone()
        if step == warm_up:
            first = before
        optimizer.step()
        if step >= warm_up:
            squared += float((w.detach() - before).square().sum())
    ratio = float((w.detach() - first).square().sum()) / squared
    # the relative error of a sum of squares of so many numbers, for the numerator alone
    error = 5 * np.sqrt(2 / dimensions)
    assert path_null(momentum, steps, nesterov=nesterov) == pytest.approx(ratio, rel=2 * error)


def test_the_null_has_its_limit():
    assert path_null(0.9, 10**6) == pytest.approx(1.9 / 0.1, rel=1e-4)
    assert np.isnan(path_null(0.9, 0))


def make(steps=6, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3, bias=False))
    probe = ModelProbe(cpfast.LayerRotation(model), needs=("paths",), **options)
    probe.begin(steps)
    return model, probe


def test_paths_are_those_of_the_weights(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3, bias=False)).to(device)
    probe = ModelProbe(cpfast.LayerRotation(model), needs=("paths",))
    weights = [model[0].weight, model[1].weight]
    for _ in range(2):  # the second epoch begins anew
        probe.begin(6)
        first = [w.detach().double().clone() for w in weights]
        steps = torch.zeros(2, dtype=torch.float64)
        for _ in range(6):
            before = [w.detach().double().clone() for w in weights]
            with torch.no_grad():
                for w in weights:
                    w += 0.1 * torch.randn_like(w)
            probe.after_step()
            moves = [(w.double() - b).square().sum() for w, b in zip(weights, before, strict=True)]
            steps += torch.stack(moves).detach().cpu()
        paths = probe.paths()
        moves = [(w.double() - f).square().sum() for w, f in zip(weights, first, strict=True)]
        expected = torch.stack(moves).detach().cpu()
        torch.testing.assert_close(paths.displacement.cpu(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(paths.steps.cpu(), steps, rtol=1e-5, atol=0)
        assert paths.count == 6


def test_weights_that_were_replaced_are_followed():
    model, probe = make()
    model[0].weight = torch.nn.Parameter(model[0].weight.detach().clone())
    probe.begin(1)
    with torch.no_grad():
        model[0].weight += 1.0
    probe.after_step()
    assert probe.paths().displacement.tolist() == pytest.approx([20.0, 0.0])


def test_ranks_are_compared_with_those_an_epoch_ago():
    scipy = pytest.importorskip("scipy.stats")
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0))
    _, probe = make(losses=lambda: scores)
    assert probe.rank_stability().isnan()
    before = scores.clone()
    scores += 0.3 * torch.rand(50, generator=torch.Generator().manual_seed(1))
    assert probe.rank_stability().isnan()  # measured once an epoch
    state = copy.deepcopy(probe.state_dict())
    probe.begin(1)
    expected = scipy.spearmanr(before.numpy(), scores.numpy()).statistic
    assert float(probe.rank_stability()) == pytest.approx(expected)
    _, resumed = make(losses=lambda: scores)
    resumed.load_state_dict(state)
    assert float(resumed.rank_stability()) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"ranks'\]: expected a tensor"):
        resumed.load_state_dict({**state, "ranks": torch.zeros(3)})


def test_an_epoch_goes_on_in_another_probe():
    def stepped(model, probe):
        for w in model.parameters():
            w.grad = torch.ones_like(w)
        with torch.no_grad():
            model[0].weight += 0.5
        probe.after_step()

    model, _ = make()
    probe = ModelProbe(cpfast.LayerRotation(model), needs=("paths", "gradients"))
    probe.begin()
    stepped(model, probe)
    other = copy.deepcopy(model)
    resumed = ModelProbe(cpfast.LayerRotation(other), needs=("paths", "gradients"))
    resumed.load_state_dict(probe.state_dict(within=True))
    assert "shown" not in probe.state_dict()
    results = []
    for net, one in ((model, probe), (other, resumed)):
        stepped(net, one)
        paths, gradients = one.paths(), one.gradients()
        results.append([*(t.tolist() for t in paths[:2]), paths.count,
                        gradients.norms.tolist(), float(gradients.decrease)])  # fmt: skip
    assert results[0] == results[1] and results[0][2] == 2
    with pytest.raises(ValueError, match=r"state_dict\['shown'\]"):
        resumed.load_state_dict({**probe.state_dict(within=True), "shown": []})


def test_what_was_not_asked_for_is_refused():
    torch.manual_seed(0)
    probe = ModelProbe(cpfast.LayerRotation(torch.nn.Linear(3, 2)))
    probe.begin(1)
    probe.after_step()
    with pytest.raises(RuntimeError, match="needs=\\('paths',\\)"):
        probe.paths()
    with pytest.raises(RuntimeError, match="needs losses="):
        probe.rank_stability()
    assert probe.path_null() == 1.0


def walk(progress, epochs=4, steps=40):
    """A detector's verdict on weights that go somewhere, or do not."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(40, 40, bias=False) for _ in range(6)))
    scores = torch.rand(100)
    probe = ModelProbe(cpfast.LayerRotation(model), losses=lambda: scores, needs=("paths",))
    detector = cpfast.CriticalPeriodDetector("path_efficiency", epochs)
    direction = [torch.randn_like(w) for w in model.parameters()]
    for epoch in range(1, epochs + 1):
        probe.begin(steps)
        for _ in range(steps):
            with torch.no_grad():
                for w, d in zip(model.parameters(), direction, strict=True):
                    w += 0.01 * (torch.randn_like(w) + progress * d)
            probe.after_step()
        detector.step(detector.rule.measure(probe), epoch)
    return detector


def test_path_efficiency_tells_a_walk_from_a_way():
    assert walk(progress=0.0).end_epoch == 2  # at the first comparison of losses
    going = walk(progress=0.5)
    assert going.end_epoch is None
    # each step a unit of noise and half a unit of progress
    expected = (40 + 0.25 * 40**2) / (40 * 1.25)
    assert going.statistics[-1][1] == pytest.approx(expected, rel=0.05)
