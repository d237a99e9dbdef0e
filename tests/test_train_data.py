"""Data sets: what is loaded, and what is refused and how."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.errors import UserError

Image = pytest.importorskip("PIL.Image")


def write_images(folder: Path, count: int, size=(9, 8), mode="RGB", value=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new(mode, size, (value + number) if mode == "L" else (value + number, 0, 9)).save(
            folder / f"{number}{suffix}"
        )


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / split / name, count, value=100 * label)
    return tmp_path


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, (12, 8, 9, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": generator.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }


def save(path: Path, arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


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


def test_loading_twice_gives_the_same(folder):
    for source in ("digits", str(folder)):
        assert data.load(source).fingerprint() == data.load(source).fingerprint()


def test_fingerprint_notices_one_pixel_and_one_label():
    digits = data.load("digits", limit=20)
    before = digits.fingerprint()
    digits.train_images[3, 4, 5] += 1
    assert digits.fingerprint() != before
    digits.train_images[3, 4, 5] -= 1
    digits.test_labels[7] += 1
    assert digits.fingerprint() != before


def test_mean_is_that_of_the_training_images():
    digits = data.load("digits")
    expected = digits.train_images.numpy().astype(np.float64).mean(0) / 255
    np.testing.assert_allclose(digits.mean().numpy(), expected, rtol=1e-6)


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


@pytest.mark.parametrize("limit", [9, 257])
def test_limit_out_of_range_says_the_range(limit):
    with pytest.raises(UserError, match=rf"--limit must be in 10 .* 256 .*got {limit}"):
        data.load("digits", limit=limit)


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


def test_missing_path():
    with pytest.raises(UserError, match="--data /nowhere: no such folder or file"):
        data.load("/nowhere")


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


def test_npz_round_trip(tmp_path, arrays):
    images = data.load(save(tmp_path / "a.npz", arrays))
    np.testing.assert_array_equal(images.train_images.numpy(), arrays["x_train"])
    np.testing.assert_array_equal(images.test_labels.numpy(), arrays["y_test"])
    assert images.train_labels.dtype == torch.int64
    grey = {k: v[..., 0] if k.startswith("x") else v for k, v in arrays.items()}
    assert data.load(save(tmp_path / "b.npz", grey)).shape == (8, 9, 1)


def test_npz_limit_is_stratified(tmp_path, arrays):
    images = data.load(save(tmp_path / "a.npz", arrays), limit=6)
    assert torch.bincount(images.train_labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "no array 'x_train'"),
        ({"x_train": np.zeros((12, 8, 9, 3), np.float32)}, "x_train must be uint8.*float32"),
        ({"x_train": np.zeros((12, 3, 8, 9), np.uint8)}, r"C at most 4, got \[12, 3, 8, 9\]"),
        ({"x_train": np.zeros((0, 8, 9, 3), np.uint8)}, r"got \[0, 8, 9, 3\]"),
        ({"x_test": np.zeros((6, 8, 8, 3), np.uint8)}, r"\[8, 9, 3\], x_test of \[8, 8, 3\]"),
        ({"y_train": np.zeros(12)}, "y_train must hold integers, got float64"),
        ({"y_train": np.zeros(11, np.int64)}, r"y_train must be \[12\].*got \[11\]"),
        ({"y_train": np.arange(12) - 1}, "y_train must count from 0, got -1"),
        ({"y_train": np.zeros(12, np.int64)}, "only one class in y_train, 0"),
        ({"y_train": np.arange(12) % 3 * 2}, "y_train must hold .* largest, 4; it lacks 1"),
        ({"y_train": np.arange(12) % 3 + 1}, "y_train must hold .* largest, 3; it lacks 0"),
        ({"y_train": np.arange(12) % 2 * (2**31 - 1)}, "largest, 2147483647; it lacks 1"),
        ({"y_train": np.full(12, 2**64 - 1, np.uint64)}, "y_train must .* 18446744073709551615"),
        ({"y_test": np.arange(6) - 1}, "y_test must count from 0, got -1"),
        ({"y_test": np.full(6, 3)}, "y_test holds label 3, y_train only to 2"),
        ({"y_train": np.array([None] * 12)}, "not a readable .npz"),
    ],
)
def test_npz_faults(tmp_path, arrays, change, message):
    changed = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    path = save(tmp_path / "a.npz", changed)
    with pytest.raises(UserError, match=message) as raised:
        data.load(path)
    assert path in str(raised.value)


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_truncated_npz(tmp_path, arrays, keep):
    path = tmp_path / "a.npz"
    save(path, arrays)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"not a readable .npz"):
        data.load(str(path))


def test_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"one array, not an .npz"):
        data.load(str(tmp_path / "a.npy"))
