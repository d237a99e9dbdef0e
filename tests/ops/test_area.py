"""Averaging by area against numpy's own sums over ever finer pixels."""

import itertools

import numpy as np
import pytest
import torch
from cuda_emulation.harness import guarded
from torch.library import opcheck

import cpfast
from cpfast import ops, reference
from cpfast._area import area_averaged, coverage

DRAW = {"seed": 3, "epoch": 5, "rotation": 15.0, "shift": 0.1, "flip": True}
# By the images' height and width and the result's.
SIZES = [
    (8, 8, 3, 3),
    (8, 6, 8, 5),
    (7, 10, 1, 1),
    (10, 14, 5, 7),
    (5, 9, 2, 9),
    (1, 6, 1, 4),
    (32, 32, 24, 24),
]
LARGE = [(32, 32, 31, 31), (32, 32, 16, 8), (33, 130, 32, 129), (70, 65, 50, 64)]
HUGE = [(224, 224, 160, 160), (224, 160, 1, 3), (300, 20, 299, 19)]
EVERY_SIZE = [
    *SIZES,
    *(pytest.param(s, marks=pytest.mark.not_emulated("many pixels")) for s in (*LARGE, *HUGE)),
]
OPTIONS = {
    "nothing": {},
    "flip": {"flip": True},
    "warp": {"flip": True, "rotation": 15.0, "shift": 0.1},
    "crop": {"flip": True, "crop": 2},
    "all": {"flip": True, "rotation": 180.0, "shift": 0.3, "crop": 1, "cutout": 3},
}


def by_repetition(images, size):
    """Each pixel h w times over, then means of whole blocks: an axis after the other."""
    for axis, n in ((-2, size[0]), (-1, size[1])):
        pixels = images.shape[axis]
        fine = np.moveaxis(images.repeat(n, axis), axis, -1)
        images = np.moveaxis(fine.reshape(*fine.shape[:-1], n, pixels).mean(-1), -1, axis)
    return images


def rounding(shape, size, largest):
    """How far float32 sums over an area may be off: by half an ulp of the largest value for each
    addition, of a column's pixels and then of a row's, and for both shares of a pixel and the
    division by the area."""
    additions = sum(-(-pixels // n) + 1 for pixels, n in zip(shape, size, strict=True))
    return (additions + 3) * 2.0**-24 * largest


def random_images(*shape):
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randint(256, shape, dtype=torch.uint8, generator=g)


def options_of(name, height, width):
    """Options for images of any size."""
    options = dict(OPTIONS[name])
    if "crop" in options:
        options["crop"] = min(options["crop"], height - 1, width - 1)
    if "cutout" in options:
        options["cutout"] = min(options["cutout"], max(height, width))
    return {"seed": 3, "epoch": 5, **options}


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


@pytest.mark.parametrize("sizes", EVERY_SIZE)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_smaller_batch_is_the_average_of_the_full_one(device, sizes, channels):
    height, width, *size = sizes
    images = random_images(5, height, width, channels).to(device)
    index = torch.tensor([4, 1, 1, 0], device=device)
    repeat = torch.arange(4, device=device)
    mean, std = [0.4, 0.5, 0.6, 0.7][:channels], [0.2, 0.3, 0.25, 0.28][:channels]
    for name in OPTIONS:
        options = {**options_of(name, height, width), "mean": mean, "std": std, "repeat": repeat}
        full = ops.augment_batch(images, index, **options).cpu().double().numpy()
        small = ops.augment_batch(images, index, **options, size=size)
        assert small.dtype == torch.float32 and small.shape == (4, channels, *size)
        assert small.is_contiguous(memory_format=torch.channels_last)
        atol = rounding((height, width), size, np.abs(full).max())
        np.testing.assert_allclose(
            small.cpu().double().numpy(), by_repetition(full, size), rtol=0, atol=atol
        )


@pytest.mark.parametrize("sizes", EVERY_SIZE)
@pytest.mark.parametrize("mean", ["none", "numbers", "image"])
def test_the_twin_averages_the_same(device, sizes, mean):
    height, width, *size = sizes
    images, index = random_images(4, height, width, 3), torch.tensor([3, 0, 2, 2, 1])
    numbers = {"none": {}, "numbers": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}}.get(
        mean, {"mean": images.float().mean(0) / 255, "std": [0.2, 0.3, 0.25]}
    )
    on_device = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in numbers.items()
    }
    for name in OPTIONS:
        options = options_of(name, height, width)
        actual = ops.augment_batch(
            images.to(device), index.to(device), **options, **on_device, size=size
        )
        expected = reference.augment_batch(images, index, **options, **numbers, size=size)
        # The values themselves are within 2e-6 of the twin's.
        atol = 2e-6 + rounding((height, width), size, 5.0)
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(5, 7), (4, 4), (9, 13), (1, 1), (10, 13)])
def test_narrow_dtypes_are_float32_rounded(device, dtype, channels, size):
    images = random_images(5, 10, 14, channels).to(device)
    index = torch.tensor([4, 1, 1, 0, 3, 2, 2], device=device)
    options = {**DRAW, "crop": 2, "cutout": 4, "mean": [0.4, 0.5, 0.6, 0.7][:channels]}
    wide = ops.augment_batch(images, index, **options, size=size)
    narrow = ops.augment_batch(images, index, **options, size=size, dtype=dtype)
    assert narrow.dtype == dtype and torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_full_size_is_as_without_a_size(device, dtype):
    images, index = random_images(5, 10, 14, 3).to(device), torch.arange(5, device=device)
    options = {**DRAW, "crop": 2, "cutout": 4, "dtype": dtype}
    full = ops.augment_batch(images, index, **options)
    assert torch.equal(ops.augment_batch(images, index, **options, size=(10, 14)), full)


@pytest.mark.parametrize(("down", "across"), [(2, 2), (1, 2), (2, 1)])
def test_pairs_of_equal_pixels_are_exact(device, down, across):
    small = random_images(6, 4, 3, 3)
    images = small.repeat_interleave(down, 1).repeat_interleave(across, 2).to(device)
    index = torch.arange(6, device=device)
    options = {"seed": 0, "epoch": 0, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    expected = ops.augment_batch(small.to(device), index, **options)
    assert torch.equal(ops.augment_batch(images, index, **options, size=(4, 3)), expected)


@pytest.mark.parametrize("value", [2.0**90, np.nan])
def test_a_pixel_counts_nowhere_beyond_its_area(device, value):
    if np.isnan(value) and cpfast.backend() == "reference":
        pytest.skip("the twin multiplies by 0 what lies beyond")
    images, mean = random_images(1, 9, 7, 2), torch.zeros(9, 7, 2)
    index, size = torch.tensor([0], device=device), (4, 3)
    options = {"seed": 0, "epoch": 0, "size": size}
    plain = ops.augment_batch(images.to(device), index, **options)
    for row, column in itertools.product((0, 2, 4, 8), (0, 2, 6)):
        mean[row, column] = value
        seen = ops.augment_batch(images.to(device), index, **options, mean=mean.to(device))
        mean[row, column] = 0
        down, across = (
            [i for i in range(n) if i * pixels < (at + 1) * n and at * n < (i + 1) * pixels]
            for at, n, pixels in ((row, size[0], 9), (column, size[1], 7))
        )
        within = torch.zeros(size, dtype=torch.bool)
        within[down[0] : down[-1] + 1, across[0] : across[-1] + 1] = True
        assert torch.equal((seen != plain).cpu(), within.expand(1, 2, 4, 3))


@pytest.mark.parametrize("size", [16383, 12289, 5, 1])
@pytest.mark.parametrize("lies", [False, True])
def test_the_longest_images(device, size, lies):
    """Against differences of numpy's running sum."""
    pixels = 16384
    images = random_images(1, pixels, 1, 1)
    values = images[0, :, 0, 0].double().numpy() / 255
    sums = np.concatenate([[0], values.cumsum()])
    edges = np.arange(size + 1) * (pixels / size)
    expected = np.diff(np.interp(edges, np.arange(pixels + 1), sums)) * (size / pixels)
    shape = (1, size) if lies else (size, 1)
    out = ops.augment_batch(
        images.view(1, 1, pixels, 1).to(device) if lies else images.to(device),
        torch.tensor([0], device=device),
        seed=0,
        epoch=0,
        size=shape,
    )
    atol = rounding((pixels,), (size,), 1.0)
    np.testing.assert_allclose(out.cpu().double().flatten().numpy(), expected, rtol=0, atol=atol)


def test_no_full_size_image_is_written():
    images, index = random_images(5, 64, 64, 3), torch.arange(5).repeat(20)
    options = {**DRAW, "mean": [0.4, 0.5, 0.6]}
    ops.augment_batch(images, index, **options, size=(24, 16))
    with torch.profiler.profile(profile_memory=True) as profile:
        out = ops.augment_batch(images, index, **options, size=(24, 16))
    events = profile.events()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in events)
    assert allocated == out.untyped_storage().nbytes() == 100 * 24 * 16 * 3 * 4
    # Nothing else reads or writes: views alone.
    others = {"cpfast::augment_batch", "aten::empty", "aten::new_empty", "aten::permute"}
    assert {e.name for e in events if "::" in e.name} <= others | {"aten::as_strided"}


@pytest.mark.parametrize("sizes", [(33, 31, 24, 20), (8, 8, 3, 3), (224, 224, 160, 160)])
def test_equal_on_any_number_of_threads(each_thread_count, sizes):
    height, width, *size = sizes
    images = random_images(11, height, width, 3)
    index = torch.randint(11, (23,), generator=torch.Generator().manual_seed(0))
    options = {**DRAW, "crop": 4, "cutout": 5, "mean": [0.4, 0.5, 0.6], "size": size}
    one, three = each_thread_count(lambda: ops.augment_batch(images, index, **options))
    assert torch.equal(one, three)


def test_a_sample_is_the_same_in_every_batch(device):
    images, size = random_images(30, 8, 9, 3).to(device), (5, 4)
    options = {**DRAW, "crop": 2, "cutout": 3, "size": size}
    everything = ops.augment_batch(images, torch.arange(30, device=device), **options)
    index = torch.randint(30, (50,), generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(ops.augment_batch(images, index, **options), everything[index])
    assert torch.equal(
        ops.augment_batch(images, index[::3].int(), **options), everything[index[::3]]
    )


@pytest.mark.parametrize("size", [(4, 3), (5, 7), (1, 1)])
def test_an_empty_batch(device, size):
    images = random_images(2, 5, 7, 3).to(device)
    index = torch.zeros(0, dtype=torch.int64, device=device)
    out = ops.augment_batch(images, index, **DRAW, crop=1, cutout=2, size=size)
    assert out.shape == (0, 3, *size)


def test_the_last_image_is_not_read_past_its_end():
    for channels, name in itertools.product((1, 2, 3, 4), OPTIONS):
        images, last = random_images(11, 5, 7, channels), torch.tensor([10, 10])
        options = {**options_of(name, 5, 7), "size": (3, 5)}
        # A read past the end is a fault.
        at_the_end, within = (
            ops.augment_batch(x, last, **options) for x in (guarded(images), images)
        )
        assert torch.equal(at_the_end, within)


@pytest.mark.cuda
@pytest.mark.parametrize("side", [32, 80])
def test_a_cuda_graph_replays_it(side):
    images = random_images(7, side, side, 3).cuda()
    index, repeat = torch.arange(5, device="cuda"), torch.zeros(5, dtype=torch.int64, device="cuda")
    options = {**DRAW, "repeat": repeat, "size": (24, side - 1)}
    ops.augment_batch(images, index, **options)  # loads the kernel outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.augment_batch(images, index, **options)
    for _ in range(3):
        index += 1
        index %= 7
        repeat += 1
        graph.replay()
        assert torch.equal(out, ops.augment_batch(images, index, **options))


def test_opcheck(device):
    images, index = random_images(5, 8, 6, 3).to(device), torch.arange(5, device=device)
    numbers = (0, 0, 0, True, 0.1, 15.0, 2, 3, torch.bfloat16)
    mean = torch.rand(8, 6, 3, device=device)
    for sides in ((5, 4), (None, 4), (5,), (8, 6)):
        given = (images, index, index, mean, [], [], *numbers, *sides)
        opcheck(torch.ops.cpfast.augment_batch, given)
        expected = tuple(a or b for a, b in zip((*sides, None)[:2], (8, 6), strict=True))
        assert torch.ops.cpfast.augment_batch(*given).shape == (5, *expected, 3)


def test_compiled(device):
    images, index = random_images(5, 8, 8, 3).to(device), torch.arange(5, device=device)

    def run(index):
        return ops.augment_batch(images, index, **DRAW, size=(5, 3)) * 2

    assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(index), run(index))


@pytest.mark.parametrize("size", [(0, 4), (11, 4), (4, 15), (-1, 4), (4, 0), (2**40, 4)])
@pytest.mark.parametrize("augment_batch", [ops.augment_batch, reference.augment_batch])
def test_sizes_out_of_range_are_named(size, augment_batch):
    images = torch.zeros(2, 10, 14, 1, dtype=torch.uint8)
    message = f"augment_batch: size: expected 1 to 10, 1 to 14, got {size[0]}, {size[1]}"
    with pytest.raises(RuntimeError) as caught:
        augment_batch(images, torch.tensor([0]), seed=0, epoch=0, size=size)
    assert str(caught.value) == f"cpfast::{message}"
