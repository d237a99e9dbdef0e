import copy
import math

import pytest
import torch
from torch import nn

import cpfast


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


def turn(model, amount=0.1):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += amount * torch.randn(p.shape, generator=g).to(p.device, p.dtype)


def test_kernels_are_watched_and_biases_and_norms_are_not():
    rotation = cpfast.LayerRotation(small_model())
    assert rotation.names == ["0.weight", "4.weight"]
    every = cpfast.LayerRotation(small_model(), include=lambda name, p: True)
    assert len(every.names) == 6


def test_against_scipy_on_each_layer(device):
    distance = pytest.importorskip("scipy.spatial.distance")
    model = small_model().to(device)
    before = copy.deepcopy(model)
    rotation = cpfast.LayerRotation(model)
    turn(model)
    measured = rotation.update()
    assert measured.shape == (2,)
    assert measured.device.type == device.type
    expected = {
        name: distance.cosine(
            before.get_parameter(name).detach().cpu().double().flatten(),
            model.get_parameter(name).detach().cpu().double().flatten(),
        )
        for name in rotation.names
    }
    assert rotation.compute() == pytest.approx(expected, rel=1e-6)
    assert rotation.mean().item() == pytest.approx(sum(expected.values()) / 2, rel=1e-6)


def test_it_reports_the_last_update_until_reset(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model)
    assert rotation.mean().item() == 0
    rotation.update()
    turn(model)
    assert rotation.mean().item() == 0
    rotation.update()
    assert rotation.mean().item() > 0
    rotation.reset()
    assert rotation.compute() == {"0.weight": 0, "4.weight": 0}


def test_the_snapshot_is_float32_whatever_the_weights_become(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model)
    model.to(torch.bfloat16)
    # Rounding to bfloat16 turns weights by about 1e-6.
    assert 0 < rotation.update().max().item() < 1e-5
    assert math.isfinite(cpfast.LayerRotation(model.double()).mean().item())


def test_memory_is_the_snapshot_alone():
    model = small_model().to(memory_format=torch.channels_last)
    rotation = cpfast.LayerRotation(model)
    snapshot = sum(r.untyped_storage().nbytes() for r in rotation.state_dict()["refs"])
    assert snapshot == sum(4 * model.get_parameter(n).numel() for n in rotation.names)


def test_saved_and_loaded_it_measures_the_same(device):
    model = small_model().to(device)
    rotation = cpfast.LayerRotation(model)
    turn(model)
    rotation.update()
    saved = copy.deepcopy(rotation.state_dict())

    resumed = cpfast.LayerRotation(copy.deepcopy(model))
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.mean(), rotation.mean())
    assert torch.equal(resumed.update(), rotation.update())


def test_a_foreign_snapshot_is_refused_and_changes_nothing():
    rotation = cpfast.LayerRotation(small_model())
    before = rotation.state_dict()
    other = cpfast.LayerRotation(nn.Linear(3, 2)).state_dict()
    with pytest.raises(ValueError, match="names.*snapshot of 1 layers"):
        rotation.load_state_dict(other)
    wrong = copy.deepcopy(before)
    wrong["refs"][1] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"4.weight: expected shape \(5, 16\), got \(2, 2\)"):
        rotation.load_state_dict(wrong)
    assert all(map(torch.equal, rotation.state_dict()["refs"], before["refs"]))


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="include chooses none of the 2 parameters of BatchNorm1d"):
        cpfast.LayerRotation(nn.BatchNorm1d(3))


def test_it_follows_weights_that_are_replaced():
    model = small_model()
    rotation = cpfast.LayerRotation(model)
    turned = copy.deepcopy(model)
    turn(turned)
    model.load_state_dict(turned.state_dict(), assign=True)
    assert rotation.update().min().item() > 0


def test_a_state_with_too_few_layers_is_refused():
    rotation = cpfast.LayerRotation(small_model())
    with pytest.raises(ValueError, match=r"refs'\]: expected 2 tensors, got 0"):
        rotation.load_state_dict({**rotation.state_dict(), "refs": []})
