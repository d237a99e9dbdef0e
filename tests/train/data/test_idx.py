"""MNIST's format: what is loaded, and what is refused and how."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.errors import UserError

LABELS = {"train": np.arange(30) % 10, "t10k": np.arange(12) % 10}


def pixels(split: str) -> np.ndarray:
    count = len(LABELS[split])
    return np.random.default_rng(count).integers(0, 256, (count, 28, 27), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder: Path, *, prefix="", test="t10k", separator="-", zipped=False, first=0):
    folder.mkdir(exist_ok=True)
    for split, name in (("train", "train"), ("t10k", test)):
        for what, array in (("images", pixels(split)), ("labels", LABELS[split] + first)):
            path = folder / f"{prefix}{name}-{what}{separator}idx{array.ndim}-ubyte"
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
            else:
                path.write_bytes(idx(array))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zipped": True},
        {"separator": "."},
        {"prefix": "emnist-digits-", "test": "test", "zipped": True},
    ],
)
def test_pixels_and_labels(tmp_path, options):
    images = data.load(str(write(tmp_path / "raw", **options)))
    np.testing.assert_array_equal(images.train_images.numpy(), pixels("train")[..., None])
    np.testing.assert_array_equal(images.test_images.numpy(), pixels("t10k")[..., None])
    assert images.train_labels.tolist() == LABELS["train"].tolist()
    assert images.test_labels.tolist() == LABELS["t10k"].tolist()
    assert images.classes == tuple("0123456789")
    assert images.name == ("emnist-digits" if "prefix" in options else "raw")


def test_labels_may_count_from_one_as_emnists_letters_do(tmp_path):
    images = data.load(str(write(tmp_path, prefix="emnist-letters-", test="test", first=1)))
    assert images.train_labels.tolist() == LABELS["train"].tolist()
    assert images.classes == tuple(str(label) for label in range(1, 11))


def test_of_several_sets_one_is_chosen_by_its_file(tmp_path):
    write(tmp_path, prefix="emnist-digits-", test="test", zipped=True)
    write(tmp_path, prefix="emnist-letters-", test="test", zipped=True, first=1)
    with pytest.raises(UserError, match=r"several data sets \(emnist-digits-, emnist-letters-\)"):
        data.load(str(tmp_path))
    images = data.load(str(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz"))
    assert images.classes[-1] == "10" and images.name == "emnist-letters"


def test_the_shadow_that_an_archive_of_macos_leaves_is_no_set(tmp_path):
    root = write(tmp_path / "raw")
    for place in (root, tmp_path / "__MACOSX"):
        place.mkdir(exist_ok=True)
        for path in root.glob("[!.]*"):
            (place / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(78))
    assert data.load(str(root)).train_size == 30
    assert data.load(str(tmp_path)).train_size == 30


def test_limit_is_stratified(tmp_path):
    images = data.load(str(write(tmp_path)), limit=20)
    assert torch.bincount(images.train_labels).tolist() == [2] * 10


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_truncated_file_is_named(tmp_path, keep, zipped):
    write(tmp_path, zipped=zipped)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if zipped else ''}"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{path}: truncated"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((30, 9))), "magic number 2050, expected 2051"),
        ("train-labels-idx1-ubyte", idx(pixels("train")), "magic number 2051, expected 2049"),
        ("train-labels-idx1-ubyte", idx(np.zeros(29)), "29 labels of 30 images"),
        ("train-labels-idx1-ubyte", idx(LABELS["train"]) + b"x", "damaged: .* there are more"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((0, 28, 27))), r"empty: .* \[0, 28, 27\]"),
        ("t10k-images-idx3-ubyte", struct.pack(">4I", 2051, *[2**31] * 3), "truncated or damaged"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 28))), "28x27, test images of 28x28"),
        ("t10k-labels-idx1-ubyte", idx(np.full(12, 10)), "labels 10 to 10, .* 0 to 9"),
        ("train-labels-idx1-ubyte", idx(np.arange(30) % 9 * 2), "labels are 0, 2, 4, 6"),
        ("train-labels-idx1-ubyte", idx(np.arange(30) % 9 + 2), "labels are 2, 3, 4"),
        ("train-labels-idx1-ubyte", idx(np.zeros(30)), "labels are 0; expected two"),
        ("train-labels-idx1-ubyte", None, "missing, as is its .gz"),
        ("t10k-labels-idx1-ubyte", None, "missing, as is its .gz"),
    ],
)
def test_faults(tmp_path, name, content, message):
    path = write(tmp_path) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        data.load(str(tmp_path))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("content", [b"no gzip file at all", None])
def test_damaged_compression_is_named(tmp_path, content):
    path = write(tmp_path, zipped=True) / "t10k-images-idx3-ubyte.gz"
    if content is None:  # the checksum at the end
        content = path.read_bytes()[:-8] + bytes(8)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: truncated or damaged \("):
        data.load(str(tmp_path))
