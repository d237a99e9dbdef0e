"""CIFAR's binary version: what is loaded, and what is refused and how."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.errors import UserError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def records(labels: np.ndarray, seed: int) -> tuple[bytes, np.ndarray]:
    """The bytes of records with labels [N, 1 or 2], and their images [N, 3, 32, 32]."""
    planes = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    rows = np.concatenate([labels.astype(np.uint8), planes.reshape(len(labels), -1)], axis=1)
    return rows.tobytes(), planes


@pytest.fixture
def cifar10(tmp_path) -> Path:
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    for number in range(1, 6):
        content, _ = records(np.arange(number, 10 + number)[:, None] % 10, number)
        (root / f"data_batch_{number}.bin").write_bytes(content)
    (root / "test_batch.bin").write_bytes(records(np.arange(4)[:, None], 6)[0])
    (root / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    (root / "readme.html").write_text("<html>")
    return root


@pytest.fixture
def cifar100(tmp_path) -> Path:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    for name, count, seed in (("train", 200, 0), ("test", 50, 1)):
        fine = np.arange(count) * 7 % 100
        content, _ = records(np.stack([fine // 5, fine], axis=1), seed)
        (root / f"{name}.bin").write_bytes(content)
    (root / "fine_label_names.txt").write_text("".join(f"fine_{n}\n" for n in range(100)))
    (root / "coarse_label_names.txt").write_text("".join(f"coarse_{n}\n" for n in range(20)))
    return root


def test_cifar10_batches_one_after_another(cifar10):
    images = data.load(str(cifar10))
    assert images.classes == CIFAR10
    assert images.shape == (32, 32, 3)
    assert images.train_size == 50 and images.test_size == 4
    assert images.train_labels.tolist() == [
        (start + i) % 10 for start in range(1, 6) for i in range(10)
    ]
    for number in range(1, 6):
        _, planes = records(np.arange(10)[:, None], number)
        part = images.train_images[10 * (number - 1) : 10 * number]
        np.testing.assert_array_equal(part.numpy(), planes.transpose(0, 2, 3, 1))
    # the archive's folder is found inside of another
    assert data.load(str(cifar10.parent)).fingerprint() == images.fingerprint()


def test_cifar100_with_fine_labels(cifar100):
    images = data.load(str(cifar100))
    assert images.outputs == 100 and images.classes[7] == "fine_7"
    assert images.train_labels[:4].tolist() == [0, 7, 14, 21]
    _, planes = records(np.zeros((50, 2)), 1)
    np.testing.assert_array_equal(images.test_images.numpy(), planes.transpose(0, 2, 3, 1))
    assert torch.bincount(data.load(str(cifar100), limit=100).train_labels).tolist() == [1] * 100


def test_limit_is_stratified(cifar10):
    assert torch.bincount(data.load(str(cifar10), limit=20).train_labels).tolist() == [2] * 10


@pytest.mark.parametrize("names", [("data_batch_1", "batches.meta"), ("train", "test", "meta")])
def test_pickled_files_are_refused_unread(tmp_path, names):
    root = tmp_path / "python-version"
    root.mkdir()
    for name in names:
        (root / name).write_bytes(b"cos\nsystem\n(S'touch touched'\ntR.")
    version = "cifar-100" if "train" in names else "cifar-10"
    with pytest.raises(UserError, match=f"pickled.*get the binary version, {version}-binary"):
        data.load(str(tmp_path))
    assert not Path("touched").exists()


@pytest.mark.parametrize("keep", [0, 3072, 3 * 3073 + 1])
def test_a_truncated_file_is_named(cifar10, keep):
    path = cifar10 / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{path}: truncated.* {keep} bytes.* 3073"):
        data.load(str(cifar10))


@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(cifar10, name):
    (cifar10 / name).unlink()
    with pytest.raises(UserError, match=rf"{cifar10 / name}: missing"):
        data.load(str(cifar10))


def test_a_label_out_of_range_is_named_with_its_record(cifar10):
    path = cifar10 / "data_batch_2.bin"
    content = bytearray(path.read_bytes())
    content[4 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: label 10 in record 4, expected 0 to 9"):
        data.load(str(cifar10))


def test_a_class_without_images(cifar10):
    for number in range(1, 6):
        content, _ = records(np.arange(9)[:, None], number)
        (cifar10 / f"data_batch_{number}.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"no training image of class 'truck'"):
        data.load(str(cifar10))


def test_names_without_content(cifar100):
    (cifar100 / "fine_label_names.txt").write_text("\n")
    with pytest.raises(UserError, match=r"fine_label_names.txt: expected the names .* got 0"):
        data.load(str(cifar100))


CUT = """
import os, sys
from pathlib import Path
from cpfast.train import data
from cpfast.train.data import cifar

root = Path(sys.argv[1])
allocate = cifar.np.empty

def cut(*arguments, **options):  # once the sizes of the files are known
    os.truncate(root / "data_batch_2.bin", 3073)
    return allocate(*arguments, **options)

cifar.np.empty = cut
try:
    data.load(str(root))
except data.UserError as error:
    print(error)
"""


def test_a_file_that_is_cut_while_it_is_read_is_named(cifar10):
    """In a process of its own: it would be killed, where the file were mapped."""
    path = cifar10 / "data_batch_2.bin"
    path.write_bytes(path.read_bytes() * 9)  # of several pages
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(cifar10)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"{path}: truncated while it was read: 3073 bytes of {90 * 3073}\n")
