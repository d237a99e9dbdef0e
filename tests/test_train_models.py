"""The networks: sizes as published, determinism, no touch on the global random state."""

import pytest
import torch

from cpfast.train import models
from cpfast.train.config import MODELS
from cpfast.train.errors import UserError


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.86),
     ("resnet110", 1.73)],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, millions):
    count = models.count_parameters(models.build(name, (32, 32, 3), 10, seed=0))
    # theirs pad with zeros where ours, as the paper, have 1x1 shortcuts
    assert count / 1e6 == pytest.approx(millions, abs=0.007)


def test_small_cnn_has_about_65_thousand_parameters():
    assert 60_000 < models.count_parameters(models.build("cnn", (32, 32, 1), 10, seed=0)) < 70_000


@pytest.mark.parametrize("name", ["cnn", "resnet8", "resnet20"])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 7), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_any_image_size(name, size, channels):
    model = models.build(name, (32, 32, channels), 7, seed=0)
    logits = model(torch.randn(2, channels, *size))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


def test_depth_is_the_number_of_layers_with_kernels():
    for name in MODELS[1:]:
        model = models.build(name, (32, 32, 3), 10, seed=0)
        kernels = [n for n, p in model.named_parameters() if p.dim() > 1 and "shortcut" not in n]
        assert len(kernels) == int(name.removeprefix("resnet"))


def test_paper_details():
    model = models.build("resnet20", (32, 32, 3), 10, seed=0)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}
    shortcuts = [m for n, m in model.named_modules() if n.endswith("shortcut")]
    convolutions = [m for m in shortcuts if isinstance(m, torch.nn.Conv2d)]
    assert [m.kernel_size for m in convolutions] == [(1, 1), (1, 1)]
    kernel = model.blocks[-1].conv2.weight
    assert kernel.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_seed_decides_the_weights_and_nothing_else_changes():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (models.build("cnn", (32, 32, 1), 10, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_quadrant_means_against_loops():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected = torch.cat(
        [x[:, :, r, :][:, :, :, c].mean((2, 3)) for r in (slice(0, 3), slice(2, 5))
         for c in (slice(0, 2), slice(2, 4))], 1
    )  # fmt: skip
    torch.testing.assert_close(models._quadrant_means(x), expected)


def test_unknown_name():
    with pytest.raises(UserError, match="got 'resnet21'"):
        models.build("resnet21", (32, 32, 3), 10, seed=0)
