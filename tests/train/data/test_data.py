"""Data sets by name: digits; what all of them can do, and what is refused and how."""

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.errors import UserError


@pytest.mark.needs("sklearn")
def test_digits_are_split_with_every_class_in_its_share():
    digits = data.load("digits")
    assert digits.train_images.shape == (256, 8, 8, 1)
    assert digits.test_images.shape == (1541, 8, 8, 1)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_images.max() == 255
    counts = torch.bincount(digits.train_labels)
    assert counts.min() >= 24 and counts.max() <= 27 and len(counts) == 10
    flat = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    from sklearn.datasets import load_digits

    assert len(flat.unique(dim=0)) == len(np.unique(load_digits().data, axis=0))


@pytest.mark.needs("sklearn")
def test_fingerprint_notices_one_pixel_and_one_label():
    digits = data.load("digits", limit=20)
    before = digits.fingerprint()
    digits.train_images[3, 4, 5] += 1
    assert digits.fingerprint() != before
    digits.train_images[3, 4, 5] -= 1
    digits.test_labels[7] += 1
    assert digits.fingerprint() != before


@pytest.mark.needs("sklearn")
def test_mean_is_that_of_the_training_images():
    digits = data.load("digits")
    expected = digits.train_images.numpy().astype(np.float64).mean(0) / 255
    np.testing.assert_allclose(digits.mean().numpy(), expected, rtol=1e-6)


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize("count", [10, 37, 100, 1797])
def test_stratified_keeps_shares_within_one(count):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    chosen = data.stratified(labels, count)
    assert len(np.unique(chosen)) == count
    share = np.bincount(labels) * count / len(labels)
    assert np.abs(np.bincount(labels[chosen], minlength=10) - share).max() < 1


def test_stratified_keeps_a_rare_class():
    labels = np.array([0] * 500 + [1] * 500 + [2] * 2)
    assert np.bincount(labels[data.stratified(labels, 10)]).tolist() == [5, 4, 1] or (
        np.bincount(labels[data.stratified(labels, 10)]).tolist() == [4, 5, 1]
    )


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize("limit", [9, 257])
def test_limit_out_of_range_says_the_range(limit):
    with pytest.raises(UserError, match=rf"--limit must be in 10 .* 256 .*got {limit}"):
        data.load("digits", limit=limit)


def test_missing_path():
    with pytest.raises(UserError, match="--data /nowhere: no such folder or file"):
        data.load("/nowhere")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.bin").write_text("no data")
    with pytest.raises(
        UserError, match=r"a\.bin: not a readable \.npz file \(File is not a zip file\)"
    ):
        data.load(str(tmp_path / "a.bin"))


def test_an_unknown_layout_says_what_was_expected(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.bin").write_text("no image")
    with pytest.raises(UserError, match="no train/ folder") as raised:
        data.load(str(tmp_path))
    for layout in (
        "train/<class>/<image> and test/<class>/<image>",
        "; or <class>/<image>",
        "data_batch_1.bin",
        "train-images-idx3-ubyte",
        "val/val_annotations.txt",
    ):
        assert layout in str(raised.value)


@pytest.mark.needs("sklearn")
def test_digits_are_the_same_every_time():
    assert data.load("digits").fingerprint() == data.load("digits").fingerprint()


@pytest.mark.needs("sklearn")
def test_random_labels_are_uniform_and_follow_from_the_seed():
    digits = data.load("digits")
    drawn = digits.with_random_labels(3)
    assert torch.equal(drawn.train_labels, digits.with_random_labels(3).train_labels)
    assert not torch.equal(drawn.train_labels, digits.with_random_labels(4).train_labels)
    assert drawn.train_labels.dtype == torch.int64
    # 25.6 expected a class, standard deviation 4.8
    assert torch.bincount(drawn.train_labels, minlength=10).min() > 8
    assert torch.bincount(drawn.train_labels, minlength=10).max() < 43
    # a tenth agree by chance: 25.6 of 256
    assert (drawn.train_labels == digits.train_labels).sum() < 50
    assert torch.equal(drawn.test_labels, digits.test_labels)
    assert torch.equal(drawn.train_images, digits.train_images)
    assert drawn.fingerprint() != digits.fingerprint()


@pytest.mark.needs("sklearn")
def test_what_describes_a_data_set_says_what_was_changed():
    digits = data.load("digits", limit=20)
    line = "digits: 20 training and 1,541 test images of 8x8x1, 10 classes"
    assert digits.describe() == line
    assert digits.with_random_labels(0).describe() == f"{line}; random training labels"


@pytest.mark.needs("sklearn")
@pytest.mark.not_emulated("no kernel runs")
def test_moving_keeps_everything(device):
    digits = data.load("digits", limit=20).with_random_labels(0)
    moved = digits.to(device)
    assert moved.train_images.device.type == moved.test_labels.device.type == device.type
    assert moved.fingerprint() == digits.fingerprint()
    assert moved.describe() == digits.describe()
    again = moved.with_random_labels(1)
    assert again.train_labels.device.type == device.type
    assert torch.equal(again.train_labels.cpu(), digits.with_random_labels(1).train_labels)
