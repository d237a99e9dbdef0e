"""What cuda_emulation takes from a device: a product and a sum rounded once, and its functions."""

import ctypes
import math

import numpy as np
import pytest
import torch
from cuda_emulation.build import contracts
from cuda_emulation.harness import emulated_only

from cpfast import ops

pytestmark = emulated_only


@pytest.mark.skipif(not contracts(), reason="this CPU cannot")
def test_a_product_and_a_sum_are_rounded_once(emulated):
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    mean, std = 0.4, 0.3
    with emulated.instead_of_cpu():
        actual = ops.augment_batch(
            images, torch.tensor([0]), seed=0, epoch=0, mean=[mean], std=[std]
        )
    scale, bias = torch.tensor([1 / std / 255, -mean / std])
    values = images.permute(0, 3, 1, 2)
    once = (values.double() * scale.double() + bias.double()).float()
    assert torch.equal(actual, once)
    assert not torch.equal(values.float() * scale + bias, once)


@pytest.mark.parametrize(
    ("name", "function", "most", "low", "high"),
    [
        ("exp2_approx", np.exp2, 2, -125, 120),
        # The argument is scaled in float32.
        ("fast_exp", np.exp, 2 + 1.173 * 80, -80, 80),
        ("exp", np.exp, 2, -80, 80),
        ("log", np.log, 1, 1e-6, 1e6),
        ("log1p", np.log1p, 1, 0, 20),
    ],
)
def test_functions_err_as_far_as_documented(emulated, name, function, most, low, high):
    model = getattr(emulated.library, f"emulation_{name}")
    model.argtypes, model.restype = [ctypes.c_float], ctypes.c_float
    x = np.linspace(low, high, 20_001, dtype=np.float32)
    nearest = function(x.astype(np.float64)).astype(np.float32)
    off = (np.array([model(value) for value in x]) - nearest) / np.spacing(np.abs(nearest))
    assert np.abs(off).max() <= most
    assert (off < 0).any() and (off > 0).any()
    if most <= 2:
        assert {*off} == {*range(-most, most + 1)}
    assert model(1.0 if name == "log" else 0.0) == function(1.0 if name == "log" else 0.0)
    assert math.isnan(model(math.nan))


def test_the_approximate_exponential_flushes_what_is_subnormal(emulated):
    model = emulated.library.emulation_exp2_approx
    model.argtypes, model.restype = [ctypes.c_float], ctypes.c_float
    assert model(-126.5) == model(-math.inf) == 0
    assert model(1e-39) == 1


def test_the_ops_of_the_cpu_come_back(emulated):
    scores, index, values = torch.zeros(3), torch.tensor([3]), torch.ones(1)
    with (
        emulated.instead_of_cpu(),
        pytest.raises(RuntimeError, match="trap: .*index out of range"),
    ):
        ops.record_scores(scores, index, values)
    with pytest.raises(RuntimeError, match=r"index\[0\]: expected"):
        ops.record_scores(scores, index, values)
