"""Arrays in an .npz file: what is loaded, and what is refused and how."""

import io
import struct
import tracemalloc
import warnings
import zipfile
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


MEDMNIST = {
    "x_train": "train_images", "y_train": "train_labels",
    "x_test": "test_images", "y_test": "test_labels",
}  # fmt: skip


def test_names_and_labels_as_medmnist_publishes_them(tmp_path, arrays):
    as_keras = data.load(save(tmp_path / "a.npz", arrays))
    renamed = {MEDMNIST[key]: value for key, value in arrays.items()}
    renamed |= {key: renamed[key][:, None] for key in ("train_labels", "test_labels")}
    renamed |= {"val_images": arrays["x_test"], "val_labels": arrays["y_test"][:, None]}
    images = data.load(save(tmp_path / "a.npz", renamed))
    assert images.fingerprint() == as_keras.fingerprint()
    assert images.note == "not used: val_images, val_labels" and as_keras.note == ""
    del renamed["test_labels"]
    with pytest.raises(UserError, match="no array 'test_labels'; expected x_train,.* found train_"):
        data.load(save(tmp_path / "a.npz", renamed))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_told_by_the_shape(tmp_path, channels):
    generator = np.random.default_rng(channels)
    last = {
        "x_train": generator.integers(0, 256, (12, 9, 8, channels), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": generator.integers(0, 256, (6, 9, 8, channels), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    first = {k: np.moveaxis(v, -1, 1) if k.startswith("x") else v for k, v in last.items()}
    expected = data.load(save(tmp_path / "a.npz", last))
    np.testing.assert_array_equal(expected.train_images.numpy(), last["x_train"])
    for limit in (None, 6):
        expected = data.load(save(tmp_path / "a.npz", last), limit)
        for order in (np.ascontiguousarray, np.asfortranarray):
            stored = {key: order(value) for key, value in first.items()}
            assert data.load(save(tmp_path / "a.npz", stored), limit).fingerprint() == (
                expected.fingerprint()
            )


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, ">i4", np.uint64, np.float16, np.float64, np.longdouble]
)
def test_whole_labels_of_any_type(tmp_path, arrays, dtype):
    changed = {k: (v % 2).astype(dtype) if k.startswith("y") else v for k, v in arrays.items()}
    images = data.load(save(tmp_path / "a.npz", changed))
    assert images.train_labels.dtype == torch.int64
    assert images.train_labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "no array 'x_train'"),
        ({"x_train": np.zeros((12, 8, 9, 3), np.float32)}, "x_train must be uint8.*float32"),
        ({"x_train": np.zeros((12, 8, 9, 3), bool)}, "x_train must be uint8.*bool"),
        ({"x_train": np.full((12, 8, 9, 3), None)}, "x_train must be uint8.*object"),
        ({"x_train": np.zeros((12, 5, 8, 9), np.uint8)}, r"C at most 4 .*got \[12, 5, 8, 9\]"),
        ({"x_train": np.zeros((12, 3, 9, 3), np.uint8)}, r"H and W more; got \[12, 3, 9, 3\]"),
        ({"x_train": np.zeros((12, 9, 4, 8), np.uint8)}, r"got \[12, 9, 4, 8\]"),
        ({"x_train": np.zeros((12, 8, 9, 3, 1), np.uint8)}, r"got \[12, 8, 9, 3, 1\]"),
        ({"x_train": np.zeros((12, 72), np.uint8)}, r"got \[12, 72\]"),
        ({"x_train": np.zeros((), np.uint8)}, r"got \[\]"),
        ({"x_train": np.zeros((0, 8, 9, 3), np.uint8)}, r"got \[0, 8, 9, 3\]"),
        ({"x_test": np.zeros((6, 8, 8, 3), np.uint8)}, r"\[8, 9, 3\], x_test of \[8, 8, 3\]"),
        ({"x_test": np.zeros((6, 1, 8, 9), np.uint8)}, r"\[8, 9, 3\], x_test of \[8, 9, 1\]"),
        ({"y_train": np.array(["a"] * 12)}, "y_train must hold whole numbers, got <U1"),
        ({"y_train": np.full(12, 1j)}, "y_train must hold whole numbers, got complex128"),
        ({"y_train": np.zeros(12, "i4,i4")}, "y_train must hold whole numbers, got .*'<i4'"),
        ({"y_train": np.array([None] * 12)}, "y_train must hold whole numbers, got object"),
        ({"y_train": np.arange(12) / 2}, r"y_train must hold whole numbers, got 0\.5"),
        ({"y_train": np.full(12, np.nan)}, "y_train must hold whole numbers, got nan"),
        ({"y_train": np.full(12, np.inf)}, "y_train must count from 0, got inf"),
        ({"y_train": np.zeros(11, np.int64)}, r"y_train must be \[12\].*got \[11\]"),
        ({"y_train": np.zeros((12, 14), np.int64)}, r"\[12\] or \[12, 1\].* got \[12, 14\]"),
        ({"y_train": np.zeros((1, 12), np.int64)}, r"\[12\] or \[12, 1\].* got \[1, 12\]"),
        ({"y_train": np.arange(12) - 1}, "y_train must count from 0, got -1"),
        ({"y_train": np.zeros(12, np.int64)}, "only one class in y_train, 0"),
        ({"y_train": np.arange(12) % 3 * 2}, "y_train must hold .* largest, 4; it lacks 1"),
        ({"y_train": np.arange(12) % 3 + 1}, "y_train must hold .* largest, 3; it lacks 0"),
        ({"y_train": np.arange(12) % 2 * (2**31 - 1)}, "largest, 2147483647; it lacks 1"),
        ({"y_train": np.full(12, 2**64 - 1, np.uint64)}, "y_train must .* 18446744073709551615"),
        ({"y_test": np.arange(6) - 1}, "y_test must count from 0, got -1"),
        ({"y_test": np.full(6, 3)}, "y_test holds label 3, y_train only to 2"),
    ],
)
def test_npz_faults(tmp_path, arrays, change, message):
    changed = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    path = save(tmp_path / "a.npz", changed)
    with pytest.raises(UserError, match=message) as raised:
        data.load(path)
    assert path in str(raised.value) and "\n" not in str(raised.value)


# --- memory -----------------------------------------------------------------------------------

MUCH = 1 << 22


def peak_of_a_refusal(path: str, message: str) -> int:
    """Bytes that numpy and Python took at the most until the file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            data.load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("x_train", np.zeros(MUCH, np.uint8), r"x_train must be \[N, H, W\].* got \[4194304\]"),
        ("x_train", np.zeros((12, 8, 9, MUCH // 864), np.uint8), "x_train must be"),
        ("x_train", np.zeros((12, 8, 9, MUCH // 864)), "x_train must be uint8"),
        ("y_train", np.zeros((12, MUCH // 12), np.uint8), r"y_train must be \[12\]"),
        ("y_test", np.zeros(MUCH, np.uint8), r"y_test must be \[6\]"),
        ("x_test", np.zeros((MUCH // 64, 8, 8), np.uint8), r"\[8, 9, 3\], x_test of \[8, 8, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path, arrays, key, array, message):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{**arrays, key: array})
    assert path.stat().st_size < MUCH / 100
    assert peak_of_a_refusal(str(path), message) < MUCH / 10


def test_a_header_of_more_than_there_is_is_refused_before_memory_is_taken(tmp_path, arrays):
    path = tmp_path / "a.npz"
    save(path, arrays)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a second member of the name, which counts
        archive.writestr("x_train.npy", npy_header((MUCH // 216, 8, 9, 3)) + bytes(1000))
    message = "x_train is truncated or damaged: its header says \\[19418, 8, 9, 3\\]"
    assert peak_of_a_refusal(str(path), message) < MUCH / 10


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


# --- damage -----------------------------------------------------------------------------------


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


def patched(path: Path, offset: int, value: int, central: int) -> None:
    """Both headers of the first member of an archive with other two bytes."""
    content = bytearray(path.read_bytes())
    for start in (content.index(b"PK\3\4") + offset, content.index(b"PK\1\2") + central):
        content[start : start + 2] = struct.pack("<H", value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value", "central", "message"),
    [
        (6, 1, 8, "not a readable .npz file .*encrypted"),
        (8, 99, 10, "not a readable .npz file .*compression"),
        (8, 14, 10, "not a readable .npz file"),  # LZMA
        (8, 12, 10, "not a readable .npz file"),  # BZIP2
        (8, 8, 10, "not a readable .npz file"),  # deflated
    ],
)
def test_encrypted_and_in_another_compression(tmp_path, arrays, offset, value, central, message):
    path = tmp_path / "a.npz"
    save(path, arrays)
    patched(path, offset, value, central)
    with pytest.raises(UserError, match=message) as raised:
        data.load(str(path))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_byte_is_refused_in_a_line_or_changes_nothing(tmp_path, write):
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 256, (2, 8, 8), dtype=np.uint8),
        "y_train": np.arange(2, dtype=np.uint8),
        "x_test": generator.integers(0, 256, (1, 8, 8), dtype=np.uint8),
        "y_test": np.zeros(1, np.uint8),
    }
    path = tmp_path / "a.npz"
    write(path, **arrays)
    whole, expected = path.read_bytes(), data.load(str(path)).fingerprint()
    refused = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert data.load(str(path)).fingerprint() == expected, position
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), position
            refused += 1
    assert refused > len(whole) / 6


def test_names_that_cannot_be_shown_in_a_line(tmp_path, arrays):
    path = save(tmp_path / "a.npz", {**arrays, "more\nlines": np.zeros(1)})
    assert data.load(path).note == r"not used: 'more\nlines'"
    del arrays["x_test"]
    path = save(tmp_path / "a.npz", {**arrays, "more\nlines": np.zeros(1)})
    with pytest.raises(UserError, match="no array 'x_test'") as raised:
        data.load(path)
    assert "\n" not in str(raised.value)


def test_more_arrays_than_can_be_shown(tmp_path, arrays):
    more = {f"more_{number}": np.zeros(1) for number in range(9)}
    assert data.load(save(tmp_path / "a.npz", {**arrays, **more})).note == (
        "not used: more_0, more_1, more_2, more_3, more_4, more_5, ..."
    )
