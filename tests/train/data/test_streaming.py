"""Images that do not fit in memory: mapped from what is kept of them, and the same to the bit."""

import errno
import os
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from support.image_files import Image

from cpfast.train import data, ranks
from cpfast.train.config import Config
from cpfast.train.data import decoded, kept, memory
from cpfast.train.errors import UserError
from cpfast.train.run import train
from cpfast.train.runfolder import RunFolder


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            size = (24 + number % 3, 20, 3)
            Image.fromarray(random.integers(256, size=size, dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    return tmp_path / "photos"


@pytest.fixture
def tiny_memory(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1000)


@pytest.fixture
def maps(monkeypatch):
    """What was mapped."""
    mapped = []
    real = kept._map

    def recorded(*arguments):
        mapped.append(real(*arguments))
        return mapped[-1]

    monkeypatch.setattr(kept, "_map", recorded)
    return mapped


def test_what_does_not_fit_is_mapped_without_a_copy_or_a_warning(
    folder, tmp_path, monkeypatch, maps
):
    in_memory = data.load(str(folder))
    assert maps == [] and "streamed" not in in_memory.note
    (tmp_path / "photos" / decoded.CACHE).rename(tmp_path / "old")
    monkeypatch.setattr(memory, "free", lambda: 1000)
    for time in range(2):  # decoded, then found
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.set_warn_always(True)
            try:
                streamed = data.load(str(folder))
            finally:
                torch.set_warn_always(False)
        assert len(maps) == time + 1 and not maps[-1].flags.writeable
        assert streamed.train_images.data_ptr() == maps[-1].ctypes.data
        assert streamed.test_images.data_ptr() == maps[-1][streamed.train_size :].ctypes.data
        assert streamed.fingerprint() == in_memory.fingerprint()
        assert torch.equal(streamed.mean(), in_memory.mean())
        assert streamed.note == f"{in_memory.note}; 4.8e-05 GB, streamed from .cpfast-cache/"
    (path,) = (folder / decoded.CACHE).glob("*.npz")
    (old,) = (tmp_path / "old").glob("*.npz")
    assert path.read_bytes()[:4000] == old.read_bytes()[:4000]
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["images"], maps[0])


def test_a_training_reads_the_map_and_is_the_same(folder, tmp_path, monkeypatch, maps):
    config = Config.from_options(
        {
            "data": str(folder), "model": "cnn", "batch_size": 8, "epochs": 2, "energy": False,
            "plot": False, "threads": 1,
        }
    )  # fmt: skip
    states = []
    for name in ("memory", "streamed"):
        images = data.load(str(folder))
        run = RunFolder(tmp_path / name)
        with run.locked():
            run.create(config)
            training = train(config, images, run)
        states.append(training.model.state_dict())
        monkeypatch.setattr(memory, "free", lambda: 1000)
    assert training.data.train_images.data_ptr() == maps[0].ctypes.data
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_decoding_holds_a_few_images_at_a_time(folder, monkeypatch, tiny_memory):
    for number in range(100):
        Image.new("RGB", (96, 90), (number, 0, 0)).save(folder / "cat" / f"more{number}.png")
    monkeypatch.setattr(decoded, "TOGETHER", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    tracemalloc.start()
    try:
        images = data.load(str(folder), image_size=(96, 96))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = 140 * 96 * 96 * 3
    assert images.train_images.numel() + images.test_images.numel() == size
    assert peak < size / 2


def test_a_limit_that_fits_is_taken_from_the_map(folder, monkeypatch, maps):
    alone = data.load(str(folder), 2, image_size=(20, 20))
    for path in (folder / decoded.CACHE).glob("*.npz"):
        path.unlink()
    monkeypatch.setattr(memory, "free", lambda: 2 * 20 * 20 * 20 * 3)
    data.load(str(folder), image_size=(20, 20))
    monkeypatch.setattr(decoded, "_decode", None)
    some = data.load(str(folder), 2, image_size=(20, 20))
    assert len(maps) == 2 and some.fingerprint() == alone.fingerprint()
    assert "streamed" not in some.note


@pytest.mark.parametrize("at", [1000, -600])
def test_damage_is_noticed_before_it_is_mapped(folder, tiny_memory, at):
    before = data.load(str(folder)).fingerprint()
    (path,) = (folder / decoded.CACHE).glob("*.npz")
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert kept.read(path, 40) is None
    assert data.load(str(folder)).fingerprint() == before
    assert kept.read(path, 40) is not None


def test_a_failed_decoding_leaves_nothing(folder, tiny_memory):
    path = folder / "cat" / "7.png"
    Image.effect_noise((80, 90), 50).save(path, "JPEG")  # its header is read, its end missing
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=f"cannot read image {path}: image file is truncated"):
        data.load(str(folder))
    assert [path.name for path in (folder / decoded.CACHE).iterdir()] == [".lock"]


def no_room(monkeypatch, folder):
    usage = decoded.shutil.disk_usage(folder)._replace(free=10**4)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: usage)


def full_disk(monkeypatch, folder):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept.np.lib.format, "write_array_header_1_0", fail)


@pytest.mark.parametrize(
    ("hindrance", "reason"),
    [(no_room, "only 1e-05 GB are free"), (full_disk, "No space left on device")],
)
def test_what_neither_fits_nor_can_be_kept_is_refused(
    folder, monkeypatch, tiny_memory, hindrance, reason
):
    hindrance(monkeypatch, folder)
    with pytest.raises(UserError) as raised:
        data.load(str(folder))
    assert str(raised.value) == (
        "the decoded images are 4.8e-05 GB, too much for the free memory, and cannot be kept: "
        f"{folder / decoded.CACHE}: {reason}; make room, or choose a smaller --image-size or "
        "--limit"
    )


def test_the_threshold_is_a_share_for_all_processes_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1000)
    assert memory.fits(500) and not memory.fits(501)
    monkeypatch.setattr(ranks, "on_this_machine", lambda: 4)
    assert memory.fits(125) and not memory.fits(126)


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.free()
    assert 2**20 < whole < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert memory._of_container() == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.free() == 700
