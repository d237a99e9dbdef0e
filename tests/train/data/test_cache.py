"""The decoded images that are kept beside the files: when they are used, and when not."""

import os

import numpy as np
import pytest
import torch
from support.image_files import Image, write_images

from cpfast.train import data
from cpfast.train.data import decoded, kept
from cpfast.train.runfolder import RunFolder


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / split / name, count, value=100 * label)
    return tmp_path


@pytest.fixture
def count_decoded(monkeypatch):
    """Images decoded so far, one number a call."""
    calls = []
    decode = decoded._decode

    def counted(own, paths, *more):
        calls.append(len(paths))
        return decode(own, paths, *more)

    monkeypatch.setattr(decoded, "_decode", counted)
    return calls


def names(folder) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (folder / decoded.CACHE).glob("*.npz"))


def test_the_second_time_nothing_is_decoded(folder, count_decoded):
    first = data.load(str(folder))
    second = data.load(str(folder))
    assert count_decoded == [16]
    assert second.fingerprint() == first.fingerprint()
    assert second.train_images.is_contiguous() and second.describe() == first.describe()
    assert torch.equal(second.test_images, first.test_images)


def test_names_that_are_no_text(folder, count_decoded):
    path = folder / "train" / "cat" / os.fsdecode(b"\xff.png")
    write_images(path.parent, 1)
    (path.parent / "0.png").rename(path)
    assert data.load(str(folder)).fingerprint() == data.load(str(folder)).fingerprint()
    assert count_decoded == [16]


def test_the_path_may_be_written_in_another_way(folder, count_decoded, monkeypatch):
    data.load(str(folder))
    monkeypatch.chdir(folder)
    for source in (".", "train/.."):
        data.load(source)
    assert count_decoded == [16]


def test_arrays_are_readable_without_pickle_and_not_compressed(folder):
    images = data.load(str(folder))
    (path,) = (folder / decoded.CACHE).glob("*.npz")
    with np.load(path, allow_pickle=False) as archive:
        stored = archive["images"]
    expected = torch.cat([images.train_images, images.test_images]).numpy()
    np.testing.assert_array_equal(stored, expected)
    assert path.stat().st_size > expected.nbytes


@pytest.mark.parametrize("change", ["pixel", "time", "name", "removed", "added"])
def test_a_changed_file_is_decoded_anew_and_replaces_what_was_kept(folder, count_decoded, change):
    before = data.load(str(folder))
    path = folder / "train" / "dog" / "3.png"
    if change == "pixel":
        Image.new("RGB", (9, 8), (1, 2, 3)).save(path)
        os.utime(path, ns=(1, 1))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "name":
        path.rename(path.with_name("a.png"))
    elif change == "removed":
        path.unlink()
    else:
        Image.new("RGB", (9, 8), (1, 2, 3)).save(path.with_name("9.png"))
    after = data.load(str(folder))
    assert len(count_decoded) == 2
    assert (after.fingerprint() == before.fingerprint()) == (change == "time")
    assert names(folder) == ["all"]


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_a_file_that_is_rewritten_with_equal_size_and_time_is_decoded_anew(
    tmp_path, count_decoded, how
):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 2, suffix=".bmp")
    before = data.load(str(tmp_path))
    path = tmp_path / "train" / "a" / "1.bmp"
    first = path.stat()
    while path.stat().st_ctime_ns == first.st_ctime_ns:  # the clock of the files is coarse
        new = path if how == "in place" else tmp_path / "new.bmp"
        Image.new("RGB", (9, 8), (200, 0, 9)).save(new)
        os.utime(new, ns=(first.st_atime_ns, first.st_mtime_ns))
        new.replace(path)
    assert path.stat().st_size == first.st_size and path.stat().st_mtime_ns == first.st_mtime_ns
    after = data.load(str(tmp_path))
    assert count_decoded == [8, 8]
    assert before.train_images[1, 0, 0].tolist() == [1, 0, 9]
    assert after.train_images[1, 0, 0].tolist() == [200, 0, 9]
    assert names(tmp_path) == ["all"]


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "empty":
        content = bytearray()
    elif how == "short":
        del content[len(content) // 2 :]
    elif how == "bit":
        content[1000] ^= 1  # of a pixel
    elif how == "header":
        content[content.index(b"(16, 8") : content.index(b"(16, 8") + 6] = b"(96, 8"
    elif how == "text":
        content = bytearray(b"no archive")
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["empty", "short", "bit", "header", "text"])
def test_damage_is_noticed_and_replaced(folder, count_decoded, capsys, how):
    before = data.load(str(folder))
    (path,) = (folder / decoded.CACHE).glob("*.npz")
    damage(path, how)
    for _ in range(2):
        assert data.load(str(folder)).fingerprint() == before.fingerprint()
    assert count_decoded == [16, 16]
    assert capsys.readouterr().err == ""


def arrays(**changed):
    """Of 16 images, as they are kept, but for what is changed; None leaves it out."""
    right = {
        "images": np.zeros((16, 8, 9, 3), np.uint8),
        "sizes": np.tile(np.int32([8, 9]), (16, 1)),
        "is_colour": np.ones(16, bool),
        "is_transparent": np.zeros(16, bool),
    }
    return {name: value for name, value in {**right, **changed}.items() if value is not None}


@pytest.mark.parametrize(
    "changed",
    [
        {"is_colour": None},
        {"images": np.zeros((15, 8, 9, 3), np.uint8)},
        {"images": np.zeros((16, 8, 9, 3), np.float32)},
        {"images": np.zeros((16, 8, 9, 1), np.uint8)},
        {"images": np.array([None])},
        {"is_colour": np.ones(3, bool)},
        {"is_transparent": np.zeros(16, np.uint8)},
        {"sizes": np.zeros((16, 2), np.int64)},
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_foreign_arrays_are_not_used(folder, count_decoded, changed, save):
    before = data.load(str(folder))
    (path,) = (folder / decoded.CACHE).glob("*.npz")
    save(path, **arrays(**changed))
    assert data.load(str(folder)).fingerprint() == before.fingerprint()
    assert count_decoded == [16, 16]


def test_arrays_of_the_right_form_are_used(folder, count_decoded):
    data.load(str(folder))
    (path,) = (folder / decoded.CACHE).glob("*.npz")
    np.savez(path, **arrays())
    assert data.load(str(folder)).train_images.max() == 0
    np.savez_compressed(path, **arrays())
    assert data.load(str(folder)).train_images.max() > 0
    assert count_decoded == [16, 16]


def test_a_limit_has_its_own_and_each_limit_one(folder, count_decoded):
    some = data.load(str(folder), limit=4)
    assert data.load(str(folder), limit=4).fingerprint() == some.fingerprint()
    assert count_decoded == [8]
    data.load(str(folder), limit=2)
    assert names(folder) == ["6", "8"]
    os.utime(folder / "test" / "cat" / "0.png", ns=(1, 1))
    data.load(str(folder), limit=4)
    assert names(folder) == ["6", "8"]


def test_a_limit_takes_from_what_is_kept_of_all(folder, count_decoded):
    alone = data.load(str(folder), limit=4)
    for path in (folder / decoded.CACHE).glob("*.npz"):
        path.unlink()
    data.load(str(folder))
    taken = data.load(str(folder), limit=4)
    assert count_decoded == [8, 16]
    assert taken.fingerprint() == alone.fingerprint()
    assert names(folder) == ["all"]


def test_a_limit_has_the_same_channels_from_what_is_kept_and_from_the_files(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 2, mode="L", value=50)
    alone = data.load(str(tmp_path), limit=2)
    assert alone.shape == (8, 9, 1)
    # one that the limit leaves out is of colour
    chosen = alone.train_images[:, 0, 0, 0].tolist()
    name = "1.png" if chosen[1] == 50 else "0.png"
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "train" / "b" / name)
    assert data.load(str(tmp_path)).shape == (8, 9, 3)
    for path in (tmp_path / decoded.CACHE).glob("6-*.npz"):
        path.unlink()
    assert data.load(str(tmp_path), limit=2).fingerprint() == alone.fingerprint()
    assert names(tmp_path) == ["all"]


def full_disk(monkeypatch, folder):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.np.lib.format, "write_array_header_1_0", fail)


def a_file_in_the_way(monkeypatch, folder):
    (folder / decoded.CACHE).write_text("not a folder")


def read_only(monkeypatch, folder):
    def fail(*_, **__):  # root may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kept, "write_atomically", fail)


@pytest.mark.parametrize(
    ("hindrance", "reason"),
    [
        (full_disk, "No space left on device"),
        (read_only, "Permission denied"),
        (a_file_in_the_way, "File exists"),
    ],
)
def test_what_cannot_be_kept_is_a_note(folder, monkeypatch, capsys, hindrance, reason):
    hindrance(monkeypatch, folder)
    images = data.load(str(folder))
    assert images.train_size == 12
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cpfast: note: the decoded images are not kept for the next time: ")
    assert reason in line and str(folder / decoded.CACHE) in line
    if (folder / decoded.CACHE).is_dir():
        assert [p.name for p in (folder / decoded.CACHE).iterdir()] == [".lock"]


def test_while_another_process_keeps_them(folder, capsys):
    with RunFolder(folder / decoded.CACHE).locked():
        assert data.load(str(folder)).train_size == 12
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert names(folder) == []


def test_a_failed_decoding_keeps_nothing(folder):
    path = folder / "train" / "cat" / "2.png"
    content = path.read_bytes()
    path.write_bytes(content[:50])
    with pytest.raises(data.UserError, match="cannot read image"):
        data.load(str(folder))
    assert names(folder) == []
