"""A batch gathered, augmented and normalised, against the twin and against plain torch ops; and one
of smaller images, averaged in the same pass, against the same in a second one."""

import math

import pytest
import rivals
import torch
from torch.nn import functional as F

from cpfast import ops, reference
from cpfast._area import area_averaged

DRAW = {"seed": 0, "epoch": 0}
# The paper's pipeline, the usual one of CIFAR, and no augmentation at all.
PIPELINES = {
    "rotate, shift, flip": {"rotation": 15.0, "shift": 0.1, "flip": True},
    "crop, flip": {"crop": 4, "flip": True},
    "gather": {},
}
SHAPES = {
    "512 of 32x32x3": (50_000, 32, 32, 3, 512),
    "32 of 8x8x1": (256, 8, 8, 1, 32),
    "64 of 224x224x3": (500, 224, 224, 3, 64),
}
# What smaller images are made of, and their size.
SMALLER = {
    "128 of 32x32x3 to 24x24": ((50_000, 32, 32, 3, 128), (24, 24)),
    "128 of 32x32x3 to 16x16": ((50_000, 32, 32, 3, 128), (16, 16)),
    "512 of 32x32x3 to 24x24": ((50_000, 32, 32, 3, 512), (24, 24)),
    "512 of 32x32x3 to 16x16": ((50_000, 32, 32, 3, 512), (16, 16)),
    "32 of 224x224x3 to 160x160": ((500, 224, 224, 3, 32), (160, 160)),
}


def torch_ops(images, index, mean, *, rotation=0.0, shift=0.0, flip=False, crop=0):
    """As one writes it: draws by the global generator, each step a pass over the batch."""
    x = images[index].permute(0, 3, 1, 2).float().div(255)
    size, (height, width), on = len(index), x.shape[2:], {"device": x.device}
    if rotation:
        angle = math.radians(rotation) * (2 * torch.rand(size, **on) - 1)
        down, right = (shift * (2 * torch.rand(size, **on) - 1) for _ in range(2))
        sign = torch.where(torch.rand(size, **on) < 0.5, -1.0, 1.0)
        cos, sin = angle.cos(), angle.sin()
        to_x = [cos * sign, sin, 2 * (sin * down + cos * right)]
        to_y = [-sin * sign, cos, 2 * (cos * down - sin * right)]
        matrix = torch.stack([torch.stack(to_x, 1), torch.stack(to_y, 1)], 1)
        grid = F.affine_grid(matrix, [size, 1, height, width], align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if crop:
        x = F.pad(x, (crop,) * 4, mode="reflect")
        row, column = torch.randint(2 * crop + 1, (2, size), **on)
        rows = row[:, None] + torch.arange(height, **on)
        columns = column[:, None] + torch.arange(width, **on)
        batch = torch.arange(size, **on)[:, None, None]
        x = x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        x = torch.where((torch.rand(size, **on) < 0.5)[:, None, None, None], x.flip(-1), x)
    return x - mean.permute(2, 0, 1)


def batches(shape, device):
    """Images, an index and a mean image: other samples in every call, as in training."""
    *size, batch = shape
    g = torch.Generator(device).manual_seed(0)
    images = torch.randint(256, size, dtype=torch.uint8, generator=g, device=device)
    mean = torch.rand(size[1:], generator=g, device=device)
    return [
        (images, torch.randint(size[0], (batch,), generator=g, device=device), mean)
        for _ in range(16)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def bench_augment_batch(race, device, shape, pipeline):
    _, height, width, channels, batch = SHAPES[shape]
    sets, options = batches(SHAPES[shape], device), PIPELINES[pipeline]
    contenders = {
        "cpfast": lambda x, i, m: ops.augment_batch(x, i, **DRAW, mean=m, **options),
        "cpfast, bfloat16": lambda x, i, m: ops.augment_batch(
            x, i, **DRAW, mean=m, dtype=torch.bfloat16, **options
        ),
        "torch ops": lambda x, i, m: torch_ops(x, i, m, **options),
    }
    if height < 100:
        contenders["twin"] = lambda x, i, m: reference.augment_batch(
            x, i, **DRAW, mean=m, **options
        )
    if shape == "512 of 32x32x3":
        contenders["torch.compile of torch ops"] = rivals.compiled(contenders["torch ops"])
    # Bytes read, float32 written.
    moved = batch * height * width * channels * (1 + 4)
    case = f"{shape}: {pipeline}"
    race("augment_batch", case, contenders, sets, moved, budget=2.0 if device == "cpu" else 0.5)


@pytest.mark.parametrize("shape", SMALLER)
@pytest.mark.parametrize("pipeline", ["rotate, shift, flip", "gather"])
def bench_smaller_images(race, device, shape, pipeline):
    (_, height, width, channels, batch), size = SMALLER[shape]
    options = PIPELINES[pipeline]

    def full(x, i, m):
        return ops.augment_batch(x, i, **DRAW, mean=m, **options)

    contenders = {
        "cpfast": lambda x, i, m: ops.augment_batch(x, i, **DRAW, mean=m, **options, size=size),
        "cpfast, bfloat16": lambda x, i, m: ops.augment_batch(
            x, i, **DRAW, mean=m, dtype=torch.bfloat16, **options, size=size
        ),
        "cpfast, the full size": full,
        "two passes": lambda x, i, m: area_averaged(full(x, i, m), size),
        # Where areas cut pixels, it counts them whole, in each.
        "two passes, F.interpolate": lambda x, i, m: F.interpolate(
            full(x, i, m), size, mode="area"
        ),
        "torch ops, F.interpolate": lambda x, i, m: F.interpolate(
            torch_ops(x, i, m, **options), size, mode="area"
        ),
    }
    # Bytes read, float32 written.
    moved = batch * channels * (height * width + 4 * size[0] * size[1])
    case = f"{shape}: {pipeline}"
    budget = 6.0 if device == "cpu" else 0.5
    race(
        "augment_batch", case, contenders, batches(SMALLER[shape][0], device), moved, budget=budget
    )
