import itertools
import math

import numpy as np
import pytest
import torch
from cuda_emulation.harness import guarded
from torch.library import opcheck
from torch.nn import functional as F

from cpfast import ops, reference

DRAW = {"seed": 3, "epoch": 5}
SIZES = [(1, 1), (1, 9), (5, 7), (8, 8), (33, 31)]
MEAN, STD = [0.4, 0.5, 0.6, 0.7], [0.2, 0.3, 0.25, 0.28]
WARP = {"rotation": 15.0, "shift": 0.1}


def random_images(size, channels, count=11):
    g = torch.Generator().manual_seed(size[0] * 100 + size[1] + channels)
    return torch.randint(256, (count, *size, channels), dtype=torch.uint8, generator=g)


def random_index(count=37, samples=11):
    return torch.randint(samples, (count,), generator=torch.Generator().manual_seed(count))


def chi_square(counts):
    """In standard deviations off a uniform draw."""
    counts = torch.as_tensor(counts, dtype=torch.float64)
    expected, freedom = counts.mean(), len(counts) - 1
    value = ((counts - expected) ** 2 / expected).sum().item()
    return abs(value - freedom) / math.sqrt(2 * freedom)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "size", [*SIZES[:-1], pytest.param(SIZES[-1], marks=pytest.mark.not_emulated("40 calls"))]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("numbers", ["none", "of channels", "of pixels"])
def test_the_twin_augments_the_same(device, size, channels, numbers):
    images, index = random_images(size, channels), random_index()
    repeat = torch.arange(len(index)) % 3
    options = {"none": {}, "of channels": {"mean": MEAN[:channels], "std": STD[:channels]}}.get(
        numbers, {"mean": images.float().mean(0) / 255, "std": STD[:channels]}
    )
    on_device = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    warps = [{}, WARP, {"rotation": 180.0, "shift": 1.0}, {"shift": 0.3}, {"rotation": 90.0}]
    for warp, flip, crop, cutout in itertools.product(
        warps, (False, True), (0, min(size) // 2), (0, max(size) // 2)
    ):
        given = {**DRAW, **warp, "flip": flip, "crop": crop, "cutout": cutout}
        actual = ops.augment_batch(
            images.to(device), index.to(device), repeat=repeat.to(device), **given, **on_device
        )
        expected = reference.augment_batch(images, index, repeat=repeat, **given, **options)
        assert actual.device.type == device.type and not actual.requires_grad
        assert actual.is_contiguous(memory_format=torch.channels_last)
        # Values up to 5, of a few sums in float32.
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_float32_rounded(device, dtype):
    images, index = random_images((33, 31), 3).to(device), random_index().to(device)
    options = {**DRAW, **WARP, "flip": True, "crop": 4, "cutout": 9, "mean": MEAN[:3]}
    wide = ops.augment_batch(images, index, **options)
    narrow = ops.augment_batch(images, index, **options, dtype=dtype)
    assert narrow.dtype == dtype and torch.equal(narrow, wide.to(dtype))


def words_of(index, block, *, seed, epoch, repeat=0):
    key = reference.mix64(reference.mix64(seed) ^ epoch)
    key = reference.mix64(key ^ int.from_bytes(b"augment", "big"))
    return reference.philox4x32((index, torch.zeros_like(index), repeat, block), key)


def flips_of(index, **draw):
    return words_of(index, 0, **draw)[3] >= 2**31


def test_philox_gives_the_published_answers():
    # Random123, kat_vectors; the C++ checks the same ones when it is compiled.
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for counter, key, words in (
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        assert tuple(int(word) for word in reference.philox4x32(counter, key)) == words


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 4), (1, 6)])
@pytest.mark.parametrize("flip", [False, True])
def test_the_geometry_is_that_of_the_keras_pipeline(device, size, flip):
    ndimage = pytest.importorskip("scipy.ndimage")
    images, index = random_images(size, 2), torch.arange(11)
    given = {**DRAW, "rotation": 40.0, "shift": 0.4, "flip": flip}
    actual = ops.augment_batch(images.to(device), index.to(device), **given).cpu()
    turn, down, right, _ = (
        ((word.double() + 0.5) / 2**31 - 1).tolist() for word in words_of(index, 0, **DRAW)
    )
    centre = (np.array(size) - 1) / 2
    expected = []
    for sample, flips in enumerate(flips_of(index, **DRAW)):
        angle = math.radians(40.0 * turn[sample])
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        shift = 0.4 * np.array([down[sample], right[sample]]) * size
        channels = [
            ndimage.affine_transform(
                channel, matrix, centre + matrix @ (shift - centre), order=1, mode="nearest"
            )
            for channel in images[sample].permute(2, 0, 1).double().numpy() / 255
        ]
        image = torch.from_numpy(np.stack(channels))
        expected.append(image.flip(-1) if flip and flips else image)
    torch.testing.assert_close(actual.double(), torch.stack(expected), rtol=0, atol=5e-7)


def test_float32_grid_sample_is_as_near_as_its_coordinates(device):
    images, index = random_images((32, 32), 3).to(device), torch.arange(11, device=device)
    actual = ops.augment_batch(images, index, **DRAW, **WARP)
    turn, down, right, _ = (
        (word.double() + 0.5) / 2**31 - 1 for word in words_of(index, 0, **DRAW)
    )
    floats = (images.float() / 255).permute(0, 3, 1, 2)
    parameters = (math.radians(15) * turn, 3.2 * down, 3.2 * right)
    expected = reference.warp(floats, *(value.float() for value in parameters))
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


def test_nothing_asked_for_is_a_gather(device):
    images, index = random_images((33, 31), 3).to(device), random_index().to(device)
    expected = images[index].permute(0, 3, 1, 2).float() * torch.tensor(1 / 255, device=device)
    assert torch.equal(ops.augment_batch(images, index, **DRAW), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_flip_is_a_flip_to_the_bit(device, size, channels):
    images, index = random_images(size, channels).to(device), random_index().to(device)
    plain = ops.augment_batch(images, index, **DRAW, mean=MEAN[:channels], std=STD[:channels])
    flipped = ops.augment_batch(
        images, index, **DRAW, mean=MEAN[:channels], std=STD[:channels], flip=True
    )
    flips = flips_of(index, **DRAW)[:, None, None, None]
    assert 0 < flips.sum() < len(index)
    assert torch.equal(flipped, torch.where(flips, plain.flip(-1), plain))


@pytest.mark.parametrize(("size", "crop"), [((8, 8), 4), ((5, 7), 4), ((33, 31), 1), ((2, 9), 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_that_of_a_reflecting_pad_to_the_bit(device, size, crop, flip):
    images, index = random_images(size, 3).to(device), random_index().to(device)
    plain = ops.augment_batch(images, index, **DRAW)
    padded = F.pad(plain, (crop, crop, crop, crop), mode="reflect")
    actual = ops.augment_batch(images, index, **DRAW, crop=crop, flip=flip)
    top, left, _, _ = (word * (2 * crop + 1) >> 32 for word in words_of(index, 1, **DRAW))
    for sample, flips in enumerate(flips_of(index, **DRAW)):
        r, c = int(top[sample]), int(left[sample])
        expected = padded[sample, :, r : r + size[0], c : c + size[1]]
        assert torch.equal(actual[sample], expected.flip(-1) if flip and flips else expected)


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_cutout_is_one_clipped_square_of_zeros(device, side):
    images, index = random_images((8, 6), 3).to(device), torch.arange(11, device=device)
    given = {**DRAW, **WARP, "mean": MEAN[:3], "std": STD[:3]}
    plain = ops.augment_batch(images, index, **given)
    actual = ops.augment_batch(images, index, **given, cutout=side)
    _, _, row, column = words_of(index, 1, **DRAW)
    row, column = (row * 8 >> 32) - side // 2, (column * 6 >> 32) - side // 2
    for sample in range(11):
        top, left = max(int(row[sample]), 0), max(int(column[sample]), 0)
        expected = plain[sample].clone()
        expected[:, top : int(row[sample]) + side, left : int(column[sample]) + side] = 0
        assert torch.equal(actual[sample], expected)


def test_a_draw_belongs_to_its_sample_not_to_its_batch(device):
    images = random_images((8, 8), 3, 300).to(device)
    given = {**DRAW, **WARP, "flip": True, "crop": 2, "cutout": 3}
    everything = ops.augment_batch(images, torch.arange(300, device=device), **given)
    index = torch.randint(300, (500,), generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(ops.augment_batch(images, index, **given), everything[index])
    assert torch.equal(ops.augment_batch(images, index.int(), **given), everything[index])
    assert torch.equal(ops.augment_batch(images, index[::3], **given), everything[index[::3]])


def test_each_seed_epoch_sample_and_repeat_is_a_draw_of_its_own(device):
    image = random_images((8, 8), 1, 1)
    images = image.expand(3, 8, 8, 1).contiguous().to(device)
    samples = torch.arange(3, device=device)
    draws = [
        ops.augment_batch(images, samples, seed=s, epoch=e, repeat=r, **WARP)
        for s, e, r in itertools.product((0, 1, -1), (0, 1, 2**40), (0, 1, 2**16, 2**32 - 1))
    ]
    assert len(torch.cat(draws).flatten(1).unique(dim=0)) == 108


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_repeats_may_differ_within_a_batch(device, dtype):
    images, index = random_images((8, 8), 3).to(device), torch.zeros(3, dtype=dtype, device=device)
    repeat = torch.tensor([2, 0, 1], dtype=dtype, device=device)
    together = ops.augment_batch(images, index, **DRAW, **WARP, repeat=repeat)
    for sample, times in zip(together, (2, 0, 1), strict=True):
        alone = ops.augment_batch(images, index[:1], **DRAW, **WARP, repeat=times)
        assert torch.equal(sample, alone[0])


# Each bit of the counter's word counts.
@pytest.mark.parametrize("wide", [False, True])
def test_repeats_up_to_32_bits_draw_as_the_twin_does(device, wide):
    repeat = torch.tensor([0, *(2**bit for bit in range(32)), 2**32 - 1])
    repeat = repeat if wide else repeat[:-2].int()
    images, index = random_images((5, 7), 3, 1), torch.zeros(len(repeat), dtype=torch.int64)
    options = {**DRAW, **WARP, "flip": True, "crop": 2}
    actual = ops.augment_batch(
        images.to(device), index.to(device), repeat=repeat.to(device), **options
    )
    expected = reference.augment_batch(images, index, repeat=repeat.long(), **options)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=2e-6)
    for times, sample in zip(repeat.tolist(), expected, strict=True):
        alone = ops.augment_batch(images.to(device), index[:1].to(device), repeat=times, **options)
        torch.testing.assert_close(alone[0].cpu(), sample, rtol=0, atol=2e-6)


def test_an_option_draws_the_same_whatever_the_others_are():
    images, index = random_images((8, 8), 1), torch.arange(11)
    given = {**DRAW, "cutout": 3, "mean": [-1.0]}
    alone = ops.augment_batch(images, index, **given) == 0
    others = {**WARP, "flip": True, "crop": 2}
    assert torch.equal(ops.augment_batch(images, index, **given, **others) == 0, alone)


SAMPLES = 20_000
DRAWS = {
    "samples": [(0, 0, 0, torch.arange(SAMPLES))],
    "epochs": [(0, epoch, 0, torch.arange(20)) for epoch in range(SAMPLES // 20)],
    "seeds": [(seed, 0, 0, torch.arange(20)) for seed in range(SAMPLES // 20)],
    "repeats": [(0, 0, torch.arange(SAMPLES), torch.zeros(SAMPLES, dtype=torch.int64))],
}


def drawn(over, images, **options):
    return torch.cat(
        [
            ops.augment_batch(images, index, seed=seed, epoch=epoch, repeat=repeat, **options)
            for seed, epoch, repeat, index in DRAWS[over]
        ]
    )


@pytest.mark.parametrize("over", DRAWS)
def test_flips_crops_and_holes_are_uniform_and_independent(over):
    # One bright pixel: where it goes tells the flip and the crop's two offsets.
    images = torch.zeros(SAMPLES, 7, 8, 1, dtype=torch.uint8)
    images[:, 3, 2] = 255
    shown = drawn(over, images, flip=True, crop=1).flatten(1).argmax(1)
    places = shown.bincount(minlength=56).view(7, 8)[2:5, 1:7]
    assert places.sum() == SAMPLES
    assert chi_square(places.flatten()) < 5
    # Ones everywhere, and a hole of one pixel.
    holes = (drawn(over, torch.full_like(images, 255), cutout=1) == 0).flatten(1)
    assert (holes.sum(1) == 1).all() and chi_square(holes.sum(0)) < 5
    together = shown.unique(return_inverse=True)[1] * 56 + holes.int().argmax(1)
    assert chi_square(together.bincount(minlength=18 * 56)) < 5


@pytest.mark.parametrize("over", DRAWS)
def test_shifts_and_angles_are_uniform_and_in_range(over):
    # The ramp's value in the middle tells where the middle comes from.
    images = torch.zeros(SAMPLES, 101, 1, 1, dtype=torch.uint8) + torch.arange(101)[:, None, None]
    if len(DRAWS[over]) > 1:
        images = images[:20]
    shift = drawn(over, images.to(torch.uint8), shift=0.2)[:, 0, 50, 0].double() * 255 - 50
    assert 20.19 < shift.max() < 20.21 and -20.21 < shift.min() < -20.19
    assert chi_square(shift.histc(100, -20.2, 20.2)) < 5


def test_no_gradient_and_no_other_random_state(device):
    images, index = random_images((8, 8), 1).to(device), torch.arange(11, device=device)
    before = torch.get_rng_state()
    mean = torch.full((8, 8, 1), 0.5, device=device, requires_grad=True)
    assert not ops.augment_batch(images, index, **DRAW, **WARP, mean=mean).requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_batch(device):
    images = random_images((5, 7), 3).to(device)
    index = torch.zeros(0, dtype=torch.int64, device=device)
    out = ops.augment_batch(images, index, **DRAW, **WARP, flip=True, crop=1, cutout=2)
    assert out.shape == (0, 3, 5, 7)


def test_equal_on_any_number_of_threads(each_thread_count):
    images, index = random_images((33, 31), 3), random_index(200)
    given = {**DRAW, **WARP, "flip": True, "crop": 4, "cutout": 9, "mean": MEAN[:3]}
    one, three = each_thread_count(lambda: ops.augment_batch(images, index, **given))
    assert torch.equal(one, three)


def test_the_last_image_is_not_read_past_its_end():
    for channels, warp in itertools.product((1, 2, 3, 4), ({}, WARP, {"rotation": 180.0})):
        images, last = random_images((5, 7), channels), torch.tensor([10, 10])
        # A read past the end is a fault.
        at_the_end, within = (
            ops.augment_batch(x, last, **DRAW, **warp, flip=True) for x in (guarded(images), images)
        )
        assert torch.equal(at_the_end, within)


def test_opcheck(device):
    images, index = random_images((8, 8), 3).to(device), torch.arange(5, device=device)
    numbers = (0, 0, 0, True, 0.1, 15.0, 2, 3, torch.bfloat16)
    mean = torch.rand(8, 8, 3, device=device)
    opcheck(torch.ops.cpfast.augment_batch, (images, index, index, mean, [], STD[:3], *numbers))
    opcheck(torch.ops.cpfast.augment_batch, (images, index, None, None, [], [], *numbers))


def test_compiled(device):
    images, index = random_images((8, 8), 3).to(device), torch.arange(5, device=device)

    def run(index):
        return ops.augment_batch(images, index, **DRAW, **WARP, mean=MEAN[:3], std=STD[:3]) * 2

    assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(index), run(index))


IMAGES, INDEX = random_images((5, 7), 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.float()}, "images: expected dtype uint8, got float32"),
        ({"images": IMAGES[0]}, r"images: expected shape \[N, H, W, C\], got \[5, 7, 3\]"),
        ({"images": IMAGES.transpose(1, 2)}, "images: expected a contiguous tensor"),
        ({"images": IMAGES.repeat(1, 1, 1, 2)}, r"1 to 4 channels, got \[11, 5, 7, 6\]"),
        ({"images": IMAGES[:, :0]}, r"height and a width of 1 to 16384, got \[11, 0, 7, 3\]"),
        ({"index": INDEX.float()}, "index: expected dtype int64 or int32, got float32"),
        ({"index": INDEX[None]}, r"index: expected shape \[B\], got \[1, 2\]"),
        ({"index": torch.tensor([0, 11])}, r"index\[1\]: expected .* in \[0, 11\), got 11"),
        ({"index": torch.tensor([-1, 0])}, r"index\[0\]: expected .* in \[0, 11\), got -1"),
        ({"repeat": -1}, r"repeat: expected a number in \[0, 2\^32\), got -1"),
        ({"repeat": torch.tensor([0, -2])}, r"repeat\[1\]: expected .*, got -2"),
        ({"repeat": torch.tensor([0])}, r"repeat: expected shape \[2\], got \[1\]"),
        ({"shift": -0.1}, r"shift: expected a share of the size in \[0, 1\], got -0.1"),
        ({"shift": 1.5}, r"shift: .* got 1.5"),
        ({"rotation": math.nan}, r"rotation: expected degrees in \[0, 180\], got nan"),
        ({"crop": 5}, r"crop: expected a padding in \[0, 5\), .* got 5"),
        ({"crop": -1}, "crop: .* got -1"),
        ({"cutout": 8}, r"cutout: expected a side in \[0, 7\], got 8"),
        ({"cutout": -1}, "cutout: .* got -1"),
        ({"mean": [0.5]}, "mean: expected 3 numbers, one a channel, got 1"),
        ({"mean": [0.5, math.inf, 0]}, r"mean\[1\]: expected a finite number, got inf"),
        ({"mean": torch.zeros(5, 7, 1)}, r"mean: expected shape \[5, 7, 3\], got \[5, 7, 1\]"),
        ({"mean": torch.zeros(5, 7, 3).double()}, "mean: expected dtype float32, got float64"),
        ({"std": [1.0, 0.0, 1.0]}, r"std\[1\]: expected a positive number, got 0"),
        ({"std": torch.ones(3, device="meta")}, "std: expected numbers on the CPU, .* on meta"),
        ({"dtype": torch.float64}, "dtype: expected float32, bfloat16 or float16, got float64"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        ops.augment_batch(**{"images": IMAGES, "index": INDEX, **DRAW, **changes})


def test_numbers_may_be_tensors():
    options = {"mean": MEAN[:3], "std": STD[:3]}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in options.items()}
    assert torch.equal(
        ops.augment_batch(IMAGES, INDEX, **DRAW, **tensors),
        ops.augment_batch(IMAGES, INDEX, **DRAW, **options),
    )
