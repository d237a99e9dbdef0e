"""What a training step takes where layers are frozen, or images are smaller, in multiples of it."""

import functools

import pytest
import torch
from bench_training_loop import lean, random_images

from cpfast.recipes import StepShape

CASES = {
    "cpu": {"resnet20": (32, 32, 3), "vit-tiny": (32, 32, 3)},
    "cuda": {"resnet20": (32, 32, 3), "vit-tiny": (32, 32, 3)},
}
BATCH = {"cpu": 32, "cuda": 512}
FROZEN = (0.25, 0.5, 0.75)
RESOLUTIONS = (0.75, 0.5)


def shapes(layers):
    """By name: shares of the layers that are frozen, and of the sides of the images."""
    made = {f"frozen {share:g}": StepShape(frozen=int(share * layers)) for share in FROZEN}
    made |= {f"resolution {side:g}": StepShape(resolution=side) for side in RESOLUTIONS}
    both = StepShape(frozen=layers // 2, resolution=0.5)
    return {"cpfast": StepShape(), **made, "frozen 0.5, resolution 0.5": both}


def step(training, shape):
    """A step of the loop; a new epoch's numbers are those of the same samples."""
    training.freeze(shape.frozen)
    training.stream._cursor.zero_()
    training.step(shape)


@pytest.mark.parametrize("model", CASES["cpu"])
def bench_step_shapes(race, device, model):
    batch, image = BATCH[device], CASES[device][model]
    training = lean(model, random_images(4 * batch, image), batch, device, step="eager")
    training.stream.extend(
        torch.arange(batch, device=training.device),
        torch.zeros(batch, dtype=torch.int64, device=training.device),
        torch.ones(batch, device=training.device),
    )
    training.model.train()
    training.schedule.step(0.0)
    layers = len(training.rotation.names)
    race(
        "step shapes",
        f"{model}, batch of {batch}, {layers} layers",
        {
            name: functools.partial(lambda shape, _: step(training, shape), shape)
            for name, shape in shapes(layers).items()
        },
        [(None,)],
        None,
    )
