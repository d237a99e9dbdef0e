"""Averaging by area against numpy's own sums over ever finer pixels."""

import numpy as np
import pytest
import torch

from cpfast import ops
from cpfast.ops._area import area_averaged, coverage

DRAW = {"seed": 3, "epoch": 5, "rotation": 15.0, "shift": 0.1, "flip": True}


def by_repetition(images, size):
    """Each pixel h w times over, then means of whole blocks."""
    height, width = images.shape[-2:]
    fine = images.repeat(size[0], -2).repeat(size[1], -1)
    blocks = fine.reshape(*images.shape[:-2], size[0], height, size[1], width)
    return blocks.mean((-3, -1))


@pytest.mark.parametrize("size", [(6, 6), (3, 2), (1, 1), (5, 4), (4, 6), (6, 5)])
def test_it_is_the_mean_over_the_area(size):
    images = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    averaged = area_averaged(images, size)
    np.testing.assert_allclose(averaged.numpy(), by_repetition(images.numpy(), size), rtol=1e-12)
    assert averaged.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("pixels", "size"), [(32, 12), (224, 160), (7, 5), (9, 9)])
def test_nothing_is_counted_twice(pixels, size):
    shares = coverage(pixels, size, torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(shares.sum(1), torch.ones(size, dtype=torch.float64))
    each = torch.full((pixels,), size / pixels, dtype=torch.float64)
    torch.testing.assert_close(shares.sum(0), each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(5, 7), (4, 4), (10, 14)])
def test_a_smaller_batch_is_the_average_of_the_full_one(device, dtype, size):
    images = torch.randint(256, (5, 10, 14, 3), dtype=torch.uint8).to(device)
    index, mean = torch.tensor([4, 1, 1, 0], device=device), [0.4, 0.5, 0.6]
    repeat = torch.arange(4, device=device)
    full = ops.augment_batch(images, index, repeat=repeat, mean=mean, **DRAW)
    small = ops.augment_batch(
        images, index, repeat=repeat, mean=mean, dtype=dtype, size=size, **DRAW
    )
    expected = by_repetition(full.cpu().double().numpy(), size)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    np.testing.assert_allclose(small.cpu().double().numpy(), expected, atol=tolerance)
    assert small.dtype == dtype and small.shape == (4, 3, *size)
    assert small.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(0, 4), (11, 4), (4, 15), (-1, 4)])
def test_sizes_out_of_range_are_named(size):
    images = torch.zeros(2, 10, 14, 1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"augment_batch: size: expected 1 to 10, 1 to 14, got"):
        ops.augment_batch(images, torch.tensor([0]), seed=0, epoch=0, size=size)
