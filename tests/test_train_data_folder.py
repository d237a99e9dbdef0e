"""Image folders: what is loaded, and what is refused and how."""

import pytest
from image_files import Image, write_images

from cpfast.train import data
from cpfast.train.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / split / name, count, value=100 * label)
    return tmp_path


def test_loading_twice_gives_the_same(folder):
    assert data.load(str(folder)).fingerprint() == data.load(str(folder)).fingerprint()


def test_folder_pixels_labels_and_classes(folder):
    images = data.load(str(folder))
    assert images.classes == ("cat", "dog")
    assert images.train_images.shape == (8, 8, 9, 3)
    assert images.train_labels.tolist() == [0] * 4 + [1] * 4
    assert images.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert images.test_labels.tolist() == [0, 0, 1, 1]


def test_folder_may_lie_one_level_down(folder, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    folder.rename(outer / "inner")
    assert len(data.load(str(outer)).train_labels) == 8


def test_folder_ignores_other_files(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / ".hidden.png").write_text("no image")
    assert len(data.load(str(folder)).train_labels) == 8


def test_limit_is_applied_before_decoding(folder):
    chosen = data.load(str(folder), limit=2)
    assert chosen.train_labels.tolist() == [0, 1]
    for path in (folder / "train").rglob("*.png"):
        if path.stem != "0":
            path.write_bytes(b"damaged")
    try:
        data.load(str(folder), limit=2)
    except UserError as error:
        # of 8 files only the two chosen ones are opened
        assert "cannot read image" in str(error)
    untouched = chosen.train_images[:, 0, 0, 0].tolist()
    for path in (folder / "train").rglob("*.png"):
        value = int(path.stem) + (100 if path.parent.name == "dog" else 0)
        if value in untouched:
            Image.new("RGB", (9, 8), (value, 0, 9)).save(path)
        else:
            path.write_bytes(b"damaged")
    assert data.load(str(folder), limit=2).fingerprint() == chosen.fingerprint()


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 2, mode="L", value=50)
    assert data.load(str(tmp_path)).shape == (8, 9, 1)
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "train" / "b" / "9.png")
    mixed = data.load(str(tmp_path))
    assert mixed.shape == (8, 9, 3)
    assert mixed.train_images[0, 0, 0].tolist() == [50, 50, 50]
    assert mixed.train_images[-1, 0, 0].tolist() == [1, 2, 3]


def test_folder_without_train(tmp_path):
    with pytest.raises(UserError, match="no train/ folder"):
        data.load(str(tmp_path))


def test_folder_without_test(folder):
    (folder / "test").rename(folder / "val")
    with pytest.raises(UserError, match="no test/ beside train/"):
        data.load(str(folder))


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        data.load(str(tmp_path))


def test_folder_with_one_class(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split / "only", 2)
    with pytest.raises(UserError, match="only one class, 'only'"):
        data.load(str(tmp_path))


def test_class_without_images(folder):
    (folder / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="emu: no images"):
        data.load(str(folder))


def test_test_class_that_is_not_trained(folder):
    write_images(folder / "test" / "emu", 1)
    with pytest.raises(UserError, match="class 'emu' is not in"):
        data.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_image_is_named(folder, content):
    path = folder / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(UserError, match=f"cannot read image {path}"):
        data.load(str(folder))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_modes_that_do_not_fit_8_bits_are_refused(folder, mode):
    path = folder / "train" / "dog" / "1.tif"
    Image.new(mode, (9, 8), 300).save(path)
    with pytest.raises(UserError, match=rf"{path}: an image of mode '{mode}'; expected 1, L"):
        data.load(str(folder))


def transparent(mode):
    if mode == "P":
        return Image.new("RGB", (9, 8), (5, 6, 7)).quantize(), {"transparency": 0}
    if mode == "L":
        return Image.new("L", (9, 8), 7), {"transparency": 7}
    return Image.new(mode, (9, 8), (5, 254) if mode == "LA" else (5, 6, 7, 254)), {}


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L"])
def test_transparent_images_are_refused(folder, mode):
    path = folder / "train" / "dog" / "1.png"
    image, options = transparent(mode)
    image.save(path, **options)
    with pytest.raises(UserError, match=f"{path}: has transparent pixels"):
        data.load(str(folder))


def test_an_opaque_alpha_channel_is_dropped(folder):
    Image.new("RGBA", (9, 8), (5, 6, 7, 255)).save(folder / "train" / "cat" / "0.png")
    Image.new("L", (9, 8), 3).save(folder / "train" / "cat" / "1.png", transparency=4)
    assert data.load(str(folder)).train_images[0, 0, 0].tolist() == [5, 6, 7]


def test_mixed_sizes_name_both_files(folder):
    Image.new("RGB", (10, 8)).save(folder / "train" / "dog" / "2.png")
    with pytest.raises(UserError, match=r"0\.png is 9x8, .*dog/2\.png is 10x8"):
        data.load(str(folder))


def test_images_too_small(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 1, size=(7, 9))
    with pytest.raises(UserError, match="9x7 are too small"):
        data.load(str(tmp_path))
