"""Folders of images of any sizes: what size is chosen, what becomes of an image, what is said."""

import os

import numpy as np
import pytest
import torch
from support.image_files import Image, write_images

from cpfast.train import data
from cpfast.train.data import decoded, image_file
from cpfast.train.data.decoded import read_image
from cpfast.train.errors import UserError


def photos(root, *sizes, suffix=".png"):
    """Class folders in which the images have these (width, height), in turn."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("RGB", size, (100 * label + number, 0, 9)).save(
                root / name / f"{number}{suffix}"
            )
    return str(root)


@pytest.mark.parametrize(
    ("sizes", "size", "said"),
    [
        ([(9, 8)] * 5, (8, 9), None),
        ([(96, 70)] * 5, (70, 96), None),
        ([(97, 70)] * 5, (64, 64), "of 70x97, resized and cropped to 64x64"),
        ([(300, 200), (80, 90), (70, 500), (90, 90)], (64, 64), "of any sizes, resized and"),
        ([(30, 20), (20, 24), (24, 20), (999, 9)], (20, 20), "and cropped to 20x20"),
        ([(97, 50)] * 5, (50, 50), "of 50x97, resized and cropped to 50x50"),
    ],
)
def test_the_size_follows_from_the_images_and_is_said(tmp_path, sizes, size, said):
    images = data.load(photos(tmp_path, *sizes))
    assert images.shape == (*size, 3)
    assert images.resized == (None if said is None else size)
    if said is None:
        assert "resized" not in images.describe()
    else:
        assert f"{said}" in images.note and images.note.endswith("(--image-size chooses)")


def test_a_size_that_is_asked_for(tmp_path):
    source = photos(tmp_path, (300, 200), (20, 40))
    for size in ((32, 48), (96, 96), (8, 8)):
        images = data.load(source, image_size=size)
        assert images.shape == (*size, 3) and images.resized == size
        assert images.note.endswith(f"of any sizes, resized and cropped to {size[0]}x{size[1]}")
        assert images.train_images[images.train_labels == 1].amin((0, 1, 2)).tolist()[1:] == [0, 9]


def test_each_size_is_kept_and_none_is_taken_for_another(tmp_path, monkeypatch):
    source = photos(tmp_path, *[(90, 80)] * 5)
    sizes = ((32, 32), (16, 32), None)
    before = [data.load(source, image_size=size).fingerprint() for size in sizes]
    assert len(set(before)) == 3
    monkeypatch.setattr(decoded, "_decode", None)
    for _ in range(2):
        assert [data.load(source, image_size=size).fingerprint() for size in sizes] == before


def test_a_limit_takes_from_all_where_its_size_is_the_same(tmp_path, monkeypatch):
    source = photos(tmp_path, *[(90, 80)] * 5, (20, 30))
    some = data.load(source, 2)
    whole = data.load(source)
    assert whole.shape == (64, 64, 3)
    for path in (tmp_path / decoded.CACHE).glob("[0-9]*.npz"):
        path.unlink()
    assert data.load(source, 2).fingerprint() == some.fingerprint()
    asked = data.load(source, image_size=(16, 16)), data.load(source, 2, image_size=(16, 16))
    assert asked[0].train_size == 10 and asked[1].train_size == 2
    for path in (tmp_path / decoded.CACHE).glob("[0-9]*.npz"):
        path.unlink()
    monkeypatch.setattr(decoded, "_decode", None)
    again = data.load(source, 2, image_size=(16, 16))
    assert again.fingerprint() == asked[1].fingerprint()


def test_images_that_are_of_the_size_stay_as_they_are(tmp_path):
    source = photos(tmp_path, *[(24, 16)] * 5)
    images = data.load(source, image_size=(16, 24))
    assert images.fingerprint() == data.load(source).fingerprint()
    assert "resized" not in images.note and images.resized == (16, 24)


# --- one image --------------------------------------------------------------------------------


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 37 + c) * np.cos(y / (29 + 5 * c)) for c in range(3)]
    return (127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (500, 500), (90, 1000)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_middle_is_what_the_means_of_areas_are(tmp_path, height, width, suffix):
    """Against plain averages over a pixel's area: the images are smooth, so that all filters of
    about a pixel's width agree."""
    picture = smooth(height, width)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture).save(path, quality=97)
    pixels = read_image(path, (30, 30), 3)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = torch.from_numpy(picture[top : top + side, left : left + side].copy()).double()
    means = torch.nn.functional.adaptive_avg_pool2d(middle.permute(2, 0, 1), 30).permute(1, 2, 0)
    assert pixels.shape == (30, 30, 3) and pixels.dtype == np.uint8
    # at the edges the filter has one side alone
    assert np.abs(pixels - means.numpy())[1:-1, 1:-1].max() < 6


def test_small_details_are_averaged_and_not_picked(tmp_path):
    board = np.indices((512, 512)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", (16, 16), 1)
    assert np.abs(pixels.astype(int) - 127.5).max() < 3


def test_an_oblong_covers_its_size_without_distortion(tmp_path):
    Image.fromarray(np.repeat(np.repeat(smooth(4, 8), 50, 0), 50, 1)).save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png", (20, 40), 3)
    middle = read_image(tmp_path / "a.png", (20, 20), 3)
    assert np.abs(whole[:, 10:30].astype(int) - middle).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_what_a_camera_turned_is_upright_before_it_is_cropped(tmp_path, suffix):
    picture = smooth(600, 400)
    exif = Image.Exif()
    exif[274] = 6
    sideways = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
    sideways.save(tmp_path / f"turned{suffix}", exif=exif, quality=97)
    Image.fromarray(picture).save(tmp_path / f"upright{suffix}", quality=97)
    assert image_file.look(tmp_path / f"turned{suffix}")[:2] == (600, 400)
    turned, upright = (
        read_image(tmp_path / f"{name}{suffix}", (24, 48), 3).astype(int)
        for name in ("turned", "upright")
    )
    assert np.abs(turned - upright).max() <= 8  # lossy ones


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_has_the_channels_that_are_asked_for(tmp_path, mode, channels):
    picture = Image.new("RGB", (30, 20), (255, 255, 255)).convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    pixels = read_image(path, (8, 8), channels)
    assert pixels.shape == (8, 8, channels) and pixels.min() >= 254


def test_greys_are_those_of_the_colours(tmp_path):
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", None, 1).ravel()[0] == 76  # 0.299 of 255, ITU-R 601
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        read_image(tmp_path / "a.png", None, 4)


def test_mixed_ones_are_said(tmp_path):
    source = photos(tmp_path, *[(20, 20)] * 5)
    for number in range(2):
        Image.new("L", (20, 20)).save(tmp_path / "cat" / f"{number}.png")
    assert data.load(source).note.endswith("; 2 grey images made RGB")


def test_a_folder_is_read_as_its_files_are_one_by_one(tmp_path):
    source = photos(tmp_path, (300, 200), (80, 90), (70, 500), suffix=".jpg")
    images = data.load(source)
    files = [read_image(path, images.resized, 3) for path in sorted(tmp_path.glob("*/*.jpg"))]
    together = torch.cat([images.train_images, images.test_images]).numpy()
    assert sorted(x.tobytes() for x in files) == sorted(x.tobytes() for x in together)


# --- files that are none ----------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.1, 0.9])
def test_a_truncated_photograph_is_named_in_one_line(tmp_path, part):
    source = photos(tmp_path, (300, 200), (80, 90), (70, 500), suffix=".jpg")
    path = tmp_path / "dog" / "1.jpg"
    Image.fromarray(smooth(300, 400)).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=f"^cannot read image {path}: ") as raised:
        data.load(source)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / decoded.CACHE).glob("*")) == []


def test_heic_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(os.sys.modules, "pillow_heif", None)
    source = photos(tmp_path, (300, 200), (80, 90))
    path = tmp_path / "cat" / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError) as raised:
        data.load(source)
    assert str(raised.value) == (
        f"{path}: HEIC, which Pillow cannot read by itself: pip install pillow-heif, or convert "
        "such files to JPEG"
    )


def test_the_layout_of_imagenet(tmp_path):
    for split, count in (("train", 6), ("val", 2)):
        for number, synset in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / split / synset
            write_images(folder, count, (40 + number, 33), value=50 * number, suffix=".JPEG")
            (folder / "0.JPEG").rename(folder / f"ILSVRC2012_{split}_00000293.JPEG")
    images = data.load(str(tmp_path))
    assert images.classes == ("n01440764", "n01443537")
    assert (images.train_size, images.test_size, images.shape) == (12, 4, (33, 33, 3))
    assert images.note == (
        "tested on val/; of any sizes, resized and cropped to 33x33 (--image-size chooses)"
    )


# --- the option -------------------------------------------------------------------------------


def test_sizes_in_words():
    assert data.parse_size("64") == (64, 64) and data.parse_size("48X64") == (48, 64)
    for text in ("", "x", "7", "64x7", "4097", "-64", "64x64x3", "6 4", "٣٢", "64.0"):
        with pytest.raises(UserError, match="--image-size must be a side or HEIGHTxWIDTH"):
            data.parse_size(text)


def test_a_size_goes_with_folders_alone(tmp_path):
    zeros = {name: np.zeros((4, 9, 9), np.uint8) for name in ("x_train", "x_test")}
    labels = {name: np.arange(4) % 2 for name in ("y_train", "y_test")}
    np.savez(tmp_path / "toy.npz", **zeros, **labels)
    with pytest.raises(UserError, match="--image-size goes with a folder of images; got .*toy.npz"):
        data.load(str(tmp_path / "toy.npz"), image_size=(8, 8))
    with pytest.raises(UserError, match="--image-size goes with a folder of images; got --data di"):
        data.load("digits", image_size=(8, 8))
