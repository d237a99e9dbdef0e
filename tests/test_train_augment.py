"""The warp against a pixel-by-pixel float64 reference, and its random parameters."""

import math

import pytest
import torch

from cpfast.train import augment


def reference(image, angle, down, right, sign):
    """One image [C, H, W] by loops: (r, c) shows the input at R(angle) ((r, c) + t), flip last."""
    _, height, width = image.shape
    centre_r, centre_c = (height - 1) / 2, (width - 1) / 2
    out = torch.empty_like(image)
    for r in range(height):
        for c in range(width):
            column = c if sign > 0 else width - 1 - c
            dr, dc = r - centre_r + down * height, column - centre_c + right * width
            row = centre_r + math.cos(angle) * dr - math.sin(angle) * dc
            col = centre_c + math.sin(angle) * dr + math.cos(angle) * dc
            row, col = min(max(row, 0), height - 1), min(max(col, 0), width - 1)
            r0, c0 = math.floor(row), math.floor(col)
            r1, c1 = min(r0 + 1, height - 1), min(c0 + 1, width - 1)
            fr, fc = row - r0, col - c0
            top = image[:, r0, c0] * (1 - fc) + image[:, r0, c1] * fc
            bottom = image[:, r1, c0] * (1 - fc) + image[:, r1, c1] * fc
            out[:, r, c] = top * (1 - fr) + bottom * fr
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_reference(size, channels):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, channels, *size, generator=generator, dtype=torch.float64)
    parameters = augment.draw(6, seed=2, epoch=3, flip=True).double()
    assert set(parameters[:, 3].tolist()) == {-1.0, 1.0}
    expected = torch.stack(
        [reference(image, *row.tolist()) for image, row in zip(images, parameters, strict=True)]
    )
    torch.testing.assert_close(augment.apply(images, parameters), expected, rtol=0, atol=1e-12)
    # float32: the coordinates carry a rounding of about 1e-6 of the width
    single = augment.apply(images.float(), parameters.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


def test_no_warp_is_the_identity_and_a_flip_is_a_flip():
    images = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    still = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, -1]], dtype=torch.float64)
    out = augment.apply(images, still)
    torch.testing.assert_close(out[0], images[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(out[1], images[1].flip(-1), rtol=0, atol=1e-14)


def test_edges_are_filled_with_the_nearest_pixel():
    images = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    out = augment.apply(images, torch.tensor([[0.0, 0.5, 0, 1]], dtype=torch.float64))
    torch.testing.assert_close(out[0, 0, :3], images[0, 0, 3:], rtol=0, atol=1e-14)
    torch.testing.assert_close(out[0, 0, 3:], images[0, 0, 5:].expand(3, 6), rtol=0, atol=1e-14)


def test_parameters_stay_in_range_and_fill_it():
    p = augment.draw(20_000, seed=0, epoch=0, flip=True)
    limit = math.radians(15)
    assert p[:, 0].abs().max() <= limit and p[:, 1:3].abs().max() <= 0.1
    assert p[:, 0].max() > 0.99 * limit and p[:, 0].min() < -0.99 * limit
    assert abs(p[:, 0].mean()) < 0.01 and p[:, 3].mean().abs() < 0.03
    assert (augment.draw(100, seed=0, epoch=0, flip=False)[:, 3] == 1).all()


def test_seed_and_epoch_decide_and_no_other_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment.draw(10, seed=1, epoch=2, flip=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, augment.draw(10, seed=1, epoch=2, flip=True))
    assert not torch.equal(first, augment.draw(10, seed=1, epoch=3, flip=True))
    assert not torch.equal(first, augment.draw(10, seed=2, epoch=2, flip=True))
    assert not torch.equal(first, augment.draw(10, seed=2, epoch=1, flip=True))
