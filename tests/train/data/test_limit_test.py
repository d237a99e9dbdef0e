"""--limit-test: fewer test samples, of each class its share."""

import numpy as np
import pytest
import torch
from support.toy_training import toy_data, toy_text

from cpfast.train import data
from cpfast.train.data.split import limited_test
from cpfast.train.errors import UserError


def test_each_class_keeps_its_share():
    whole = toy_data()
    some = limited_test(whole, 6)
    assert torch.bincount(some.test_labels).tolist() == [2, 2, 2]
    assert (some.test_size, some.train_size) == (6, whole.train_size)
    for image, label in zip(some.test_images, some.test_labels, strict=True):
        same = (whole.test_images == image).flatten(1).all(1)
        assert label in whole.test_labels[same]
    assert some.note == "tested on 6 of 15" and "tested on 6 of 15" in some.describe()
    assert some.fingerprint() != whole.fingerprint()
    assert torch.equal(some.train_images, whole.train_images)


def test_text_has_no_classes():
    some = limited_test(toy_text(), 4)
    assert some.test_tokens.shape == (4, 9)


@pytest.mark.parametrize("count", [2, 16])
def test_more_or_fewer_than_there_can_be(count):
    with pytest.raises(UserError, match=r"^--limit-test must be in 3 \(classes\) .. 15 \(test s"):
        limited_test(toy_data(), count)
    with pytest.raises(UserError, match=r"^--limit-test must be in 1 .. 10 \(test sequences\)"):
        limited_test(toy_text(), 11)


def test_a_file(tmp_path):
    labels = np.arange(12) % 3
    images = np.zeros((12, 9, 9), dtype=np.uint8) + labels[:, None, None].astype(np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    loaded = data.load(str(tmp_path / "d.npz"), limit_test=6)
    assert loaded.test_size == 6 and loaded.train_size == 12
