"""Arrays in an .npz file: what is loaded, and what is refused and how."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.errors import UserError


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
