"""Run folders: nothing foreign overwritten, damaged files named, one process at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from cpfast.train import runfolder
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder, new_folder, write_atomically


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(Config.from_options({}))
    return folder


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_config_comes_back(folder):
    assert folder.config() == Config.from_options({})


def test_a_used_folder_is_refused_and_left_alone(folder):
    before = (folder.path / "config.json").read_bytes()
    for refuse in (folder.check_free, lambda: folder.create(Config.from_options({"epochs": 3}))):
        with pytest.raises(UserError, match="holds a run already; continue it with --resume"):
            refuse()
    assert (folder.path / "config.json").read_bytes() == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    folder = RunFolder(tmp_path)
    for refuse in (folder.check_free, lambda: folder.create(Config.from_options({}))):
        with pytest.raises(UserError, match=r"not empty .holds thesis.tex., and not a run"):
            refuse()
    assert names(tmp_path) == ["thesis.tex"]


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="a file, not a folder"),
        RunFolder(tmp_path / "file").locked(),
    ):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": "other"}'])
def test_damaged_config(folder, text):
    (folder.path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json"):
        folder.config()


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no run here"):
        RunFolder(tmp_path).config()


def test_metrics_with_a_last_line_cut_short(folder):
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "loss": epoch / 3})
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert [line["epoch"] for line in folder.metrics()] == [1, 2]
    folder.cut_metrics(1)
    assert path.read_text() == json.dumps({"epoch": 1, "loss": 1 / 3}) + "\n"
    with pytest.raises(UserError, match=r"1 epochs, but last.pt is after epoch 2"):
        folder.cut_metrics(2)


def test_metrics_damaged_within(folder):
    (folder.path / "metrics.jsonl").write_text('{"epoch": 1}\nxx\n{"epoch": 3}\n')
    with pytest.raises(UserError, match="line 2: damaged"):
        folder.metrics()
    (folder.path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 3}\n')
    with pytest.raises(UserError, match="line 2: epoch 3 out of order"):
        folder.metrics()


def test_checkpoint_comes_back(folder):
    assert folder.checkpoint() is None
    folder.save_checkpoint({"epoch": 3, "w": torch.arange(4.0), "history": [(1, 0.5)]})
    state = folder.checkpoint()
    assert state["epoch"] == 3 and state["history"] == [(1, 0.5)]
    assert torch.equal(state["w"], torch.arange(4.0))


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_checkpoint(folder, keep):
    folder.save_checkpoint({"epoch": 3, "w": torch.arange(1000.0)})
    path = folder.path / "last.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{path}: truncated, or not a checkpoint"):
        folder.checkpoint()


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.path),)


def test_a_checkpoint_cannot_run_code(folder, tmp_path):
    Evil.path = tmp_path / "made"
    torch.save({"format": runfolder.FORMAT, "x": Evil()}, folder.path / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        folder.checkpoint()
    assert not Evil.path.exists()


@pytest.mark.parametrize("foreign", [{"model": {}}, [1, 2], torch.zeros(2)])
def test_foreign_checkpoint(folder, foreign):
    torch.save(foreign, folder.path / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint of a cpfast run"):
        folder.checkpoint()


def test_a_failed_write_keeps_the_old_file(folder):
    path = folder.path / "last.pt"
    folder.save_checkpoint({"epoch": 1})
    before, listing = path.read_bytes(), names(folder.path)

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == before and names(folder.path) == listing


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stop"]
)
def test_an_error_while_a_checkpoint_is_written_comes_out_as_itself(folder, monkeypatch, error):
    folder.save_checkpoint({"epoch": 1})
    before, listing = (folder.path / "last.pt").read_bytes(), names(folder.path)
    fdopen = os.fdopen

    def open_failing(descriptor, mode):
        file = fdopen(descriptor, mode)

        class Failing:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data):
                if len(data) > 1000:  # a small header still fits
                    raise error
                return file.write(data)

        return Failing()

    monkeypatch.setattr(os, "fdopen", open_failing)
    with pytest.raises(type(error)) as raised:
        folder.save_checkpoint({"epoch": 2, "w": torch.arange(1000.0)})
    monkeypatch.undo()
    if isinstance(error, OSError):  # which a full disk raises without the file's name
        assert raised.value.errno == 28 and raised.value.filename == str(folder.path / "last.pt")
    else:
        assert raised.value is error
    assert (folder.path / "last.pt").read_bytes() == before and names(folder.path) == listing


def test_a_checkpoint_without_its_epoch(folder):
    assert folder.epochs() == 0
    folder.save_checkpoint({"epoch": 2})
    assert folder.epochs() == 2
    folder.save_checkpoint({"epoch": "two"})
    with pytest.raises(UserError, match=r"last.pt: not a checkpoint of a cpfast run"):
        folder.epochs()


HOLD = """
import sys
from cpfast.train.runfolder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_lock_names_its_owner_and_dies_with_it(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"), folder.locked():
            pass
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            folder.check_free()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with folder.locked():  # the file is still there, the lock is not
        assert (folder.path / ".lock").read_text() == str(os.getpid())


def test_lock_removes_what_a_killed_writer_left(folder):
    left = folder.path / f".last.pt-abc{runfolder.TEMPORARY}"
    left.write_bytes(b"half")
    with folder.locked():
        assert not left.exists()


def test_a_disk_too_full_for_the_lock_is_named(folder, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as raised, folder.locked():
        pass
    assert raised.value.filename == str(folder.path / ".lock")


def test_new_folders_count_up(tmp_path):
    made = [new_folder(tmp_path / "runs", "x").name for _ in range(3)]
    assert made == ["x-1", "x-2", "x-3"]


def test_fork_copies_up_to_the_checkpoint(folder, tmp_path):
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch})
    folder.save_checkpoint({"epoch": 2, "config": {}})
    folder.save_energy({"kwh": 1.0, "seconds": 2.0, "components": {}})
    other = RunFolder(tmp_path / "other")
    config = Config.from_options({"method": "detector"})
    folder.fork(other, config)
    assert other.config() == config
    assert other.checkpoint()["config"] == config.to_dict()
    assert [line["epoch"] for line in other.metrics()] == [1, 2]
    assert other.energy() == {"kwh": 1.0, "seconds": 2.0, "components": {}}
