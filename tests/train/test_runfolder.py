"""Run folders: nothing foreign overwritten, damaged files named, one process at a time."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from cpfast.train import files
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.files import new_folder, write_atomically
from cpfast.train.runfolder import RunFolder


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


def append(folder, *epochs):
    """The lines that metrics.jsonl has then."""
    lines = []
    folder.restore_metrics(lines)
    for epoch in epochs:
        folder.append_metrics({"epoch": epoch, "loss": epoch / 3}, lines)
    return lines


def test_metrics_with_a_last_line_cut_short(folder):
    lines = append(folder, 1, 2, 3)
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [line["epoch"] for line in folder.metrics()] == [1, 2]
    assert not folder.restore_metrics(lines[:1])  # what is cut off has no checkpoint
    assert path.read_text() == json.dumps({"epoch": 1, "loss": 1 / 3}) + "\n"
    assert folder.restore_metrics(lines)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("xx", "Expecting value"),
        ('{"epoch": 3}', "epoch 3 out of order"),
        ('{"epoch": true}', r"line\['epoch'\]: expected int, got True"),
        ('{"epoch": 2.0}', r"line\['epoch'\]: expected int, got 2.0"),
        ("[]", "line: expected names and values"),
        ("{}", "line: no 'epoch'"),
        ("[" * 200_000, "nested too deeply"),
        ('{"epoch":' * 200_000, "nested too deeply"),
    ],
    ids=lambda value: value[:12],
)
def test_metrics_damaged_within(folder, line, fault):
    for after in ("", '{"epoch": 3}\n'):
        (folder.path / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n{after}')
        with pytest.raises(UserError, match=f"line 2: damaged .{fault}"):
            folder.metrics()


ENERGY = {
    "kwh": 1.0, "seconds": 2.0, "components": {"cpu": {"kwh": 1.0, "source": "measured"}},
    "co2e": {"kg": 1.0, "source": "estimated", "country": None, "grams_per_kwh": 475},
    "cost": {"value": 1.0, "source": "measured", "by_kwh": None, "by_hour": 1.0,
             "price_kwh": None, "price_hour": 2},
}  # fmt: skip


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    return {**value, path[0]: changed(value[path[0]], path[1:], new)}


NULL = [("kwh",), ("co2e",), ("cost",), ("co2e", "country"),
        *[("cost", name) for name in ("by_kwh", "by_hour", "price_kwh", "price_hour")]]  # fmt: skip


@pytest.mark.parametrize("path", [*places(ENERGY)], ids=lambda path: ".".join(path) or "all")
def test_energy_of_wrong_types(folder, path):
    source = folder.path / "energy.json"
    folder.save_energy(ENERGY)
    assert folder.energy() == ENERGY
    for new in (None, True, [], {}, "x", 10**400, math.nan, [[[0]]]):
        energy = changed(ENERGY, path, new)
        source.write_text(json.dumps(energy))
        if (
            (new is None and path in NULL)
            or (new == "x" and path[-1:] in (("source",), ("country",)))
            or (new == {} and path == ("components",))
        ):
            assert folder.energy() == energy
            continue
        with pytest.raises(UserError, match=r"energy.json: ") as raised:
            folder.energy()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("name", ["config.json", "energy.json"])
@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, "null"])
def test_json_that_cannot_be_read(folder, name, text):
    (folder.path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: ") as raised:
        folder.config() if name == "config.json" else folder.energy()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_checkpoint_comes_back(folder):
    assert folder.checkpoint() is None
    folder.save_checkpoint(stored(3, w=torch.arange(4.0), history=[(1, 0.5)]))
    state = folder.checkpoint()
    assert state["epoch"] == 3 and state["history"] == [(1, 0.5)]
    assert torch.equal(state["w"], torch.arange(4.0))


def stored(epoch, **state):
    lines = [json.dumps({"epoch": number}) for number in range(1, epoch + 1)]
    return {"epoch": epoch, "metrics": lines, **state}


def test_a_failed_write_keeps_the_old_file(folder):
    path = folder.path / "last.pt"
    folder.save_checkpoint(stored(1))
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
    folder.save_checkpoint(stored(1))
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
        folder.save_checkpoint(stored(2, w=torch.arange(1000.0)))
    monkeypatch.undo()
    if isinstance(error, OSError):  # which a full disk raises without the file's name
        assert raised.value.errno == 28 and raised.value.filename == str(folder.path / "last.pt")
    else:
        assert raised.value is error
    assert (folder.path / "last.pt").read_bytes() == before and names(folder.path) == listing


def test_epochs_are_those_of_the_checkpoint(folder):
    assert folder.epochs() == 0
    folder.save_checkpoint(stored(2))
    assert folder.epochs() == 2


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "two"}, {"epoch": True}, {"epoch": 2.0}, {"epoch": 10**30}, {"epoch": 1},
        {"metrics": None}, {"metrics": ["x", "y"]}, {"metrics": [1, 2]},
        {"metrics": ["[" * 200_000] * 2}, {"metrics": ['{"epoch": true}', '{"epoch": 2}']},
    ],
)  # fmt: skip
def test_a_checkpoint_whose_epochs_or_lines_are_none(folder, change):
    folder.save_checkpoint({**stored(2), **change})
    with pytest.raises(UserError, match=r"last.pt: ") as raised:
        folder.epochs()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


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
    left = folder.path / f".last.pt-abc{files.TEMPORARY}"
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
    lines = append(folder, 1, 2, 3)
    folder.save_checkpoint({"epoch": 2, "metrics": lines[:2], "config": {}})
    folder.save_energy({"kwh": 1.0, "seconds": 2.0, "components": {}})
    other = RunFolder(tmp_path / "other")
    config = Config.from_options({"method": "detector"})
    folder.fork(other, config)
    assert other.config() == config
    assert other.checkpoint()["config"] == config.to_dict()
    assert [line["epoch"] for line in other.metrics()] == [1, 2]
    assert other.energy() == {"kwh": 1.0, "seconds": 2.0, "components": {}}
