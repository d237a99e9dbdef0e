import copy

import numpy as np
import pytest
import torch
from support.detection import replay

import cpfast
from cpfast.detection.probe import ModelProbe


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 1), torch.nn.BatchNorm2d(12), torch.nn.Flatten(),
        torch.nn.BatchNorm1d(12, affine=False), torch.nn.Linear(12, 9), torch.nn.BatchNorm1d(9),
    )  # fmt: skip


def scales(epoch, seed):
    """Of 21 channels, of either sign; they move ever less."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((epoch + 1, 21)) * 0.8 ** np.arange(epoch + 1)[:, None]
    return np.cumsum(steps, 0)[-1].astype(np.float32)


def expected(epochs, seed, share, keep, limit=0.1):
    """A first-in first-out list of masks, and the Hamming distances to the newest."""
    masks, rows, end = [], [], None
    for epoch in range(epochs):
        sizes = np.abs(scales(epoch, seed))
        masks = [*masks[-(keep - 1) :], sizes > np.sort(sizes)[int(len(sizes) * share)]]
        distances = [np.count_nonzero(m ^ masks[-1]) / len(sizes) for m in masks[-2::-1]]
        rows.append(distances + [np.nan] * (keep - 1 - len(distances)))
        if end is None and len(masks) == keep and max(distances) <= limit:
            end = epoch + 1
    return np.array(rows), end


@pytest.mark.not_emulated("no kernel runs")
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_masks_and_verdict_are_the_papers(device, seed, share):
    model, epochs = make().to(device), 25
    probe = ModelProbe(cpfast.LayerRotation(model), needs=("scales",))
    detector = cpfast.CriticalPeriodDetector("early_bird", epochs, share=share)
    rows, end = expected(epochs, seed, share, keep=5)
    assert end is not None and end > 5
    for epoch in range(epochs):
        values = torch.from_numpy(scales(epoch, seed)).to(device)
        with torch.no_grad():
            model[1].weight.copy_(values[:12])
            model[5].weight.copy_(values[12:])
        probe.begin(1)
        measured = detector.rule.measure(probe)
        np.testing.assert_allclose(measured.cpu().numpy(), rows[epoch], rtol=1e-12)
        assert torch.equal(measured.isnan(), detector.rule.measure(probe).isnan())  # measured once
        detector.step(measured, epoch + 1)
        state = copy.deepcopy(probe.state_dict())  # each epoch is another process's
        probe = ModelProbe(cpfast.LayerRotation(model), needs=("scales",))
        probe.load_state_dict(state)
    assert detector.end_epoch == end


def test_every_one_of_the_distances_counts():
    rows = [[0.0, 0.0, 0.0, np.nan], [0.1, 0.1, 0.1, 0.11], [0.1, 0.0, 0.1, 0.1]]
    detector = replay("early_bird", [[0.0, np.nan, np.nan, np.nan]] * 3 + rows)
    assert detector.end_epoch == 6 and not detector.censored
    assert replay("early_bird", [[np.nan] * 4] * 4 + rows[2:]).censored


def test_a_model_without_batch_normalisation_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2, affine=False))
    with pytest.raises(ValueError, match="^needs batch normalisation with scales, and Sequential"):
        ModelProbe(cpfast.LayerRotation(model), needs=("scales",))


def test_a_state_of_another_model_is_refused():
    probe = ModelProbe(cpfast.LayerRotation(make()), needs=("scales",))
    state = {**probe.state_dict(), "masks": {"0.5 4": [torch.zeros(7, dtype=torch.bool)]}}
    with pytest.raises(ValueError, match=r"^state_dict\['masks'\]\['0.5 4'\]\[0\]: expected"):
        probe.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share: .* got 0.0"),
        ({"share": 1.0}, "share: .* got 1.0"),
        ({"distance": -0.1}, "distance: .* got -0.1"),
        ({"keep": 1}, "keep: .* got 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cpfast.CriticalPeriodDetector("early_bird", **options)
