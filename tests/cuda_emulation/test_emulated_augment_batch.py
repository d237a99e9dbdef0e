"""The CUDA kernels of augment_batch, run on the CPU by cuda_emulation."""

import itertools

import pytest
import torch
from cuda_emulation.harness import assert_close, cpu, emulated_only, generator, guarded

pytestmark = emulated_only

OPTIONS = {
    "nothing": {},
    "flip": {"flip": True},
    "crop": {"flip": True, "crop": 2},
    "warp": {"flip": True, "shift": 0.1, "rotation": 15.0},
    "far warp": {"shift": 1.0, "rotation": 180.0},
    "all": {"flip": True, "shift": 0.1, "rotation": 15.0, "crop": 1, "cutout": 3},
}
# Up to 4096 pixels an image lies in shared memory; a warp writes 128 pixels, a thread 4.
SIZES = [(3, 3), (5, 7), (8, 8), (4, 32), (3, 43), (33, 31), (64, 64), (241, 17), (3, 1367)]


# By the images' size. Of images beyond 4096 pixels a block writes 256 pixels of the result.
SMALLER = {
    (8, 8): [(3, 3), (8, 5), (1, 1)],
    (5, 7): [(5, 3), (4, 7)],
    (33, 31): [(32, 30), (24, 16), (4, 31)],
    (65, 64): [(33, 32), (16, 16), (64, 3)],
    (241, 17): [(160, 11), (1, 17)],
}


def arguments(
    size, channels, samples=5, batch=6, *, mean=None, dtype=torch.float32, smaller=(), **options
):
    g = generator(*size, channels)
    images = torch.randint(256, (samples, *size, channels), dtype=torch.uint8, generator=g)
    index = torch.randint(samples, (batch,), generator=g)
    index[-1] = samples - 1
    numbers = {
        "seed": -3, "epoch": 2**40, "repeat": 7, "flip": False, "shift": 0.0, "rotation": 0.0,
        "crop": 0, "cutout": 0, **options,
    }  # fmt: skip
    mean_image = torch.rand(*size, channels, generator=g) if mean == "image" else None
    means = [0.4, 0.5, 0.6, 0.7][:channels] if mean == "numbers" else []
    stds = [0.2, 0.3, 0.25, 0.28][:channels] if mean else []
    return [images, index, None, mean_image, means, stds, *numbers.values(), dtype, *smaller]


def check(emulated, given):
    """The same draws and coordinates, to the roundings of the last sums: those of areas go row by
    row here, and column by column on the CPU."""
    (actual,) = emulated("augment_batch", *given)
    expected = cpu.augment_batch(*given)
    pixels = zip(given[0].shape[1:3], actual.shape[1:3], strict=True)
    additions = sum(-(-whole // smaller) + 1 for whole, smaller in pixels if whole > smaller)
    step = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[actual.dtype]
    assert_close(actual, expected, rtol=step, atol=2e-6 + additions * 2.0**-23 * 5)
    assert emulated.allocated == actual.numel() * actual.element_size()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_size_and_channel_count(emulated, size, options):
    for channels, mean in zip((1, 2, 3, 4), (None, "numbers", "image", "image"), strict=True):
        given = arguments(size, channels, mean=mean, **OPTIONS[options])
        check(emulated, given)


@pytest.mark.parametrize("size", SMALLER)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_smaller_size_and_channel_count(emulated, size, options):
    for smaller in SMALLER[size]:
        for channels, mean in zip((1, 2, 3, 4), (None, "numbers", "image", "image"), strict=True):
            given = arguments(
                size, channels, batch=3, mean=mean, smaller=smaller, **OPTIONS[options]
            )
            check(emulated, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("size", "smaller"),
    [((8, 8), ()), ((7, 9), ()), ((130, 32), ()), ((7, 9), (5, 3)), ((130, 32), (40, 13))],
)
def test_every_dtype_and_alignment(emulated, dtype, channels, size, smaller):
    given = arguments(size, channels, mean="image", dtype=dtype, smaller=smaller, **OPTIONS["all"])
    images, index, _, mean = given[:4]
    repeats = torch.arange(len(index)) + 2**31
    for offset in (None, 0, 1, 2, 3):
        guards = [guarded(tensor, offset) for tensor in (images, index, repeats, mean)]
        check(emulated, [*guards, *given[4:]])


def test_integers_of_either_width(emulated):
    images, index, *rest = arguments((8, 8), 3, **OPTIONS["all"])
    repeats = torch.arange(len(index))
    for wide, times in itertools.product((index, index.int()), (repeats, repeats.int())):
        check(emulated, [images, wide, times, *rest[1:]])


@pytest.mark.parametrize("smaller", [(8, 8), (5, 3)])
def test_an_empty_batch(emulated, smaller):
    images, index, *rest = arguments((8, 8), 3, smaller=smaller)
    (out,) = emulated("augment_batch", images, index[:0], *rest)
    assert out.shape == (0, *smaller, 3)


@pytest.mark.parametrize("size", [(8, 8), (130, 32)])
@pytest.mark.parametrize("smaller", [(), (5, 3)])
@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_an_index_out_of_range_traps(emulated, size, smaller, bad):
    images, index, *rest = arguments(size, 3, smaller=smaller)
    index[2] = bad
    with pytest.raises(RuntimeError, match="trap: .*augment_batch: index out of range"):
        emulated.run("augment_batch", images, index, *rest)


@pytest.mark.parametrize("smaller", [(), (5, 3)])
@pytest.mark.parametrize("bad", [-1, 2**32])
def test_a_repeat_out_of_range_traps(emulated, smaller, bad):
    images, index, _, *rest = arguments((8, 8), 3, smaller=smaller)
    repeats = torch.zeros_like(index)
    repeats[2] = bad
    with pytest.raises(RuntimeError, match="trap: .*augment_batch: repeat out of range"):
        emulated.run("augment_batch", images, index, repeats, *rest)
