"""--augment randaugment: torchvision's operations, each image's own draws, resume to the bit."""

import sys

import pytest
import torch
from support.toy_training import (
    TRAIN,
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    without_times,
)

from cpfast.recipes import StepShape
from cpfast.train import run
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.batches import ImageBatches
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError
from cpfast.train.randaugment import MOST, OPERATIONS, RandAugment

try:
    from torchvision.transforms import v2
except (ImportError, RuntimeError):  # or built for another torch
    v2 = None

pytestmark = pytest.mark.usefixtures("one_thread")
needs_torchvision = pytest.mark.skipif(v2 is None, reason="torchvision cannot be imported")


def pictures(count=40, channels=3, side=12):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_without_torchvision_it_is_refused_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    message = r"^--augment randaugment needs torchvision, .*\): pip install torchvision, of the .*"
    with pytest.raises(UserError, match=message) as error:
        ImageBatches(make_config(augment="randaugment"), toy_data())
    assert "\n" not in str(error.value)


def test_a_captured_step_is_refused_and_is_not_the_default():
    with pytest.raises(UserError, match="^--step graph: not with --augment randaugment, whose"):
        Config.from_options({"augment": "randaugment", "device": "cuda:0", "step": "graph"})
    config = Config.from_options({"augment": "randaugment", "device": "cuda:0"})
    assert config.step == "eager"
    assert Config.from_options({"augment": "paper", "device": "cuda:0"}).step == "graph"


def test_the_header_names_its_numbers():
    said = AUGMENTATIONS["randaugment"].describe(flip=True)
    assert said == "augmented by shifts of 12.5 %, mirroring, RandAugment (n 2, m 9)"


@needs_torchvision
@pytest.mark.parametrize("magnitude", [0, 5, 9, 20, MOST])
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_are_torchvision_s(magnitude, channels):
    from torchvision.transforms.v2 import functional

    images = pictures(4, channels)
    theirs = v2.RandAugment(num_magnitude_bins=MOST + 1)
    assert list(OPERATIONS) == list(theirs._AUGMENTATION_SPACE)
    for name, (operation, has_sides) in OPERATIONS.items():
        levels, signed = theirs._AUGMENTATION_SPACE[name]
        assert signed == has_sides, name
        at = levels(MOST + 1, 12, 12)
        for sign in (-1, 1) if signed else (1,):
            value = 0.0 if at is None else sign * float(at[magnitude])
            wanted = theirs._apply_image_or_video_transform(
                images, name, value, theirs.interpolation, theirs._fill
            )
            found = operation(functional, images, sign * magnitude / MOST)
            assert found.shape == images.shape and found.dtype == torch.uint8
            # a level of 0.3 is no float32: that may round a pixel otherwise
            assert (found.int() - wanted.int()).abs().max() <= 1, (name, sign)


@needs_torchvision
def test_each_image_has_draws_of_its_own_by_its_number_alone():
    images, number = pictures(200), torch.arange(200) + 1000
    augment = RandAugment(2, 9, seed=3)
    whole = augment(images, number)
    state = torch.get_rng_state()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(images[order], number[order]), whole[order])
    one = augment(images[7:8], number[7:8])
    assert torch.equal(one[0], whole[7])
    assert torch.equal(torch.get_rng_state(), state)
    same = images[:1].expand(200, -1, -1, -1)
    different = {tuple(image.flatten().tolist()) for image in augment(same, number)}
    assert len(different) > 100  # of 26 x 26 pairs, some of which commute or change nothing
    assert not torch.equal(RandAugment(2, 9, seed=4)(images, number), whole)
    assert torch.equal(augment(images, number, strength=1.0), whole)


@needs_torchvision
def test_layers_and_strength():
    images, number = pictures(50), torch.arange(50)
    assert torch.equal(RandAugment(0, 9, seed=0)(images, number), images)
    assert not torch.equal(
        RandAugment(2, 9, seed=0)(images, number, 0.5), RandAugment(2, 9, seed=0)(images, number)
    )
    limit = RandAugment(1, MOST, seed=0)(images, number)
    assert torch.equal(RandAugment(1, MOST, seed=0)(images, number, 2.0), limit)


@needs_torchvision
def test_of_a_batch():
    data = toy_data()
    batches = ImageBatches(make_config(augment="randaugment"), data)
    plain = ImageBatches(make_config(augment="crop-flip"), data)
    index, draw = torch.arange(TRAIN), torch.zeros(TRAIN).long()
    images, labels = batches.train(index, draw)
    others, _ = plain.train(index, draw)
    assert images.shape == others.shape and images.dtype == torch.float32
    assert images.stride() == others.stride()
    assert torch.equal(labels, data.train_labels[index])
    changed = (images - others).abs().flatten(1).amax(1) > 1 / 255
    assert 0.5 < changed.float().mean() < 1
    # without operations it would be theirs, but for rounding to pixels
    unchanged = images[~changed] - others[~changed]
    assert unchanged.abs().max() <= 0.5 / 255 + 1e-6
    again, _ = batches.train(index.flip(0), draw)
    assert torch.equal(again.flip(0), images)
    later, _ = batches.train(index, draw + 1)
    assert not torch.equal(later, images)
    none, _ = batches.train(index, draw, StepShape(augment=0.0))
    assert torch.equal(none, batches.plain(index)[0])


@needs_torchvision
def test_resume_equals_no_stop_to_the_bit(tmp_path):
    config, data = make_config(augment="randaugment", method="detector+prune"), toy_data()
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, data, whole)
    for epochs in (1, 4, 6):
        run.train(config, data, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())


@needs_torchvision
def test_images_of_other_channels_are_refused():
    images = torch.zeros(6, 8, 8, 4, dtype=torch.uint8)
    labels = torch.arange(6) % 2
    data = ImageData(images, labels, images, labels, ("a", "b"), "toy")
    with pytest.raises(UserError, match="^--augment randaugment: for images of 1 or 3 channels, "):
        ImageBatches(make_config(augment="randaugment"), data)
