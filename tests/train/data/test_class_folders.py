"""Class folders without a split, as EuroSAT is published: how it is split, what is refused."""

import pytest
import torch
from support.image_files import Image, write_images

from cpfast.train import data
from cpfast.train.errors import UserError

CLASSES = ("AnnualCrop", "Forest", "Highway")
COUNTS = (10, 20, 15)


@pytest.fixture(params=["2750", "EuroSAT_RGB"])
def eurosat(tmp_path, request):
    """Each image's first pixel tells which it is."""
    root = tmp_path / "eurosat" / request.param
    for label, (name, count) in enumerate(zip(CLASSES, COUNTS, strict=True)):
        write_images(root / name, count, value=50 * label)
        for number in range(count):
            path = root / name / f"{number}.png"
            path.rename(path.with_name(f"{name}_{number + 1}.jpg"))  # PNG by content: exact
    return root


def test_a_fifth_of_each_class_is_held_out(eurosat):
    images = data.load(str(eurosat))
    assert images.classes == CLASSES
    assert torch.bincount(images.test_labels).tolist() == [2, 4, 3]
    assert torch.bincount(images.train_labels).tolist() == [8, 16, 12]
    first = torch.cat([images.train_images, images.test_images])[:, 0, 0, 0]
    labels = torch.cat([images.train_labels, images.test_labels])
    assert sorted(first.tolist()) == [
        50 * label + number for label, count in enumerate(COUNTS) for number in range(count)
    ]
    assert torch.equal(first.long() // 50, labels)
    # not simply the first ones
    assert images.test_images[:, 0, 0, 0].tolist()[:2] != [0, 1]


def test_the_split_is_fixed_and_said(eurosat):
    images = data.load(str(eurosat))
    assert "a fifth of each class" in images.describe()
    for path in (eurosat / ".cpfast-cache").glob("*.npz"):
        path.unlink()
    assert data.load(str(eurosat)).fingerprint() == images.fingerprint()
    # found one level down, as the archive leaves it
    assert data.load(str(eurosat.parent)).fingerprint() == images.fingerprint()


def test_limit_leaves_the_test_images_alone(eurosat):
    some = data.load(str(eurosat), limit=9)
    assert torch.bincount(some.train_labels).tolist() == [2, 4, 3]
    assert torch.equal(some.test_images, data.load(str(eurosat)).test_images)


def test_train_and_test_folders_go_before_class_folders(tmp_path):
    write_images(tmp_path / "pictures", 2)
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / "set" / split / name, 2)
    assert data.load(str(tmp_path)).name == "set"


def test_several_sets_side_by_side(tmp_path):
    for outer in ("one", "two"):
        for name in ("a", "b"):
            write_images(tmp_path / outer / name, 2)
    with pytest.raises(UserError, match="several folders with data: one, two"):
        data.load(str(tmp_path))


def test_images_in_folders_of_a_class_are_split_with_its_others(eurosat):
    write_images(eurosat / "Forest" / "series", 5, value=90)
    (eurosat / "Forest" / "series" / "notes.txt").write_text("no image")
    (eurosat / "labels.csv").write_text("no class")
    write_images(eurosat / "__MACOSX", 3)
    images = data.load(str(eurosat))
    assert images.classes == CLASSES
    assert torch.bincount(images.test_labels).tolist() == [2, 5, 3]
    assert torch.bincount(images.train_labels).tolist() == [8, 20, 12]
    assert images.describe().endswith("for testing; 2 files passed over (.csv 1, .txt 1)")


def test_a_class_of_one_image_cannot_be_split(eurosat):
    write_images(eurosat / "River", 1)
    with pytest.raises(UserError, match="River: only one image; two at least"):
        data.load(str(eurosat))


def test_one_class(tmp_path):
    write_images(tmp_path / "only", 3)
    with pytest.raises(UserError, match="only one class, 'only'"):
        data.load(str(tmp_path))


def test_a_class_without_images(eurosat):
    (eurosat / "SeaLake").mkdir()
    with pytest.raises(UserError, match="SeaLake: no images"):
        data.load(str(eurosat))


def test_an_image_of_another_size_is_resized_with_all_and_said(eurosat):
    Image.new("RGB", (9, 10)).save(eurosat / "Forest" / "Forest_7.png")
    images = data.load(str(eurosat))
    assert images.shape == (8, 8, 3) and images.train_size + images.test_size == 46
    assert "of any sizes, resized and cropped to 8x8 (--image-size chooses)" in images.describe()


def test_images_in_no_class_folder_are_refused_with_what_to_do(tmp_path):
    write_images(tmp_path / "flat", 5)
    with pytest.raises(UserError) as raised:
        data.load(str(tmp_path / "flat"))
    assert str(raised.value) == (
        f"{tmp_path / 'flat'}: 5 images in no class folder; move those of each class into a folder "
        "of its own, flat/<class>/<image>"
    )
