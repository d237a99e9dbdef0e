"""Tiny-ImageNet's published layout: what is loaded, and what is refused and how."""

import pytest
import torch
from support.image_files import Image

from cpfast.train import data
from cpfast.train.errors import UserError

WNIDS = ("n01443537", "n01629819", "n02124075")
VALIDATION = (2, 0, 1, 0)


@pytest.fixture
def tiny(tmp_path):
    """64x64 JPEGs of one colour; the first of the second class is greyscale, as some are."""
    root = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for number in range(4):
            grey = label == 1 and number == 0
            Image.new("L" if grey else "RGB", (64, 64), 77 if grey else (80 * label, 0, 40)).save(
                images / f"{wnid}_{number}.JPEG"
            )
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("".join(f"{wnid}\ta word, another\n" for wnid in WNIDS))
    for split in ("val", "test"):
        (root / split / "images").mkdir(parents=True)
        for number, label in enumerate(VALIDATION):
            Image.new("RGB", (64, 64), (80 * label, 0, 40)).save(
                root / split / "images" / f"{split}_{number}.JPEG"
            )
    (root / "val" / "val_annotations.txt").write_text(
        "".join(
            f"val_{n}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n" for n, label in enumerate(VALIDATION)
        )
    )
    return root


def test_images_labels_and_classes(tiny):
    images = data.load(str(tiny))
    assert images.classes == WNIDS
    assert images.shape == (64, 64, 3)
    assert images.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.test_labels.tolist() == list(VALIDATION)
    # JPEG moves a colour by a step or two
    red = images.train_images[:, 9, 9, 0].int()
    expected = torch.tensor([0] * 4 + [77] + [80] * 3 + [160] * 4)
    assert (red - expected).abs().max() <= 3
    assert len(images.train_images[4, 9, 9].unique()) == 1
    red = images.test_images[:, 9, 9, 0].int()
    assert (red - 80 * torch.tensor(VALIDATION)).abs().max() <= 3
    assert images.describe().endswith("; tested on val/; 1 grey image made RGB")


def test_it_may_lie_one_level_down(tiny):
    assert data.load(str(tiny.parent)).name == "tiny-imagenet-200"


def test_limit_of_greyscale_images_keeps_their_channels(tiny):
    some = data.load(str(tiny), limit=3)
    assert torch.bincount(some.train_labels).tolist() == [1, 1, 1]
    assert some.shape == (64, 64, 3) and some.test_size == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_9.JPEG\tn01443537\t0\t0\t1\t1", r"val_9.JPEG is not in .*images"),
        ("val_3.JPEG\tn09999999\t0\t0\t1\t1", r"line 5: .* a class of train/, got .*n09999999"),
        ("val_3.JPEG", r"line 5: expected a file, a tab and a class .* got 'val_3.JPEG'"),
    ],
)
def test_annotations_that_do_not_fit(tiny, line, message):
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + line + "\n")
    with pytest.raises(UserError, match=message) as raised:
        data.load(str(tiny))
    assert str(annotations) in str(raised.value)


def test_missing_annotations_are_named(tiny):
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val/val_annotations\.txt: no such file"):
        data.load(str(tiny))


def test_an_image_without_annotation(tiny):
    path = tiny / "val" / "images" / "val_7.JPEG"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(UserError, match=rf"{path}: no class in .*val_annotations\.txt"):
        data.load(str(tiny))


def test_files_passed_over_are_said(tiny):
    for path in ("val/images/._val_0.JPEG", "val/images/Thumbs.db", "train/.DS_Store"):
        (tiny / path).write_bytes(b"no image")
    note = "tested on val/; 1 grey image made RGB"
    assert data.load(str(tiny)).note == note
    for path in ("val/images/notes.txt", f"train/{WNIDS[0]}/images/notes.txt", "train/a.csv"):
        (tiny / path).write_bytes(b"no image")
    assert data.load(str(tiny)).note == f"{note}; 3 files passed over (.txt 2, .csv 1)"


def test_an_image_in_a_folder_has_no_annotation_of_its_name_alone(tiny):
    path = tiny / "val" / "images" / "more" / "val_1.JPEG"
    path.parent.mkdir()
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(UserError, match=rf"{path}: no class in .*val_annotations\.txt"):
        data.load(str(tiny))


def test_a_class_without_images(tiny):
    for path in (tiny / "train" / WNIDS[1] / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=rf"{WNIDS[1]}/images: no images"):
        data.load(str(tiny))


def test_a_truncated_image_is_named(tiny):
    path = tiny / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_1.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=f"cannot read image {path}"):
        data.load(str(tiny))


def test_an_image_of_another_size_is_resized_and_said(tiny):
    path = tiny / "val" / "images" / "val_2.JPEG"
    Image.new("RGB", (64, 63), (9, 9, 9)).save(path)
    images = data.load(str(tiny))
    assert images.shape == (64, 64, 3) and "of any sizes, resized and cropped" in images.note
    assert data.load(str(tiny), image_size=(32, 16)).shape == (32, 16, 3)


def test_no_validation_images(tiny):
    for path in (tiny / "val" / "images").iterdir():
        path.unlink()
    (tiny / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(UserError, match="val/images: no images"):
        data.load(str(tiny))
