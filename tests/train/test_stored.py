"""What a run has stored, damaged, changed or missing: told in a line, or made up for."""

import copy
import errno
import json
import math
import shutil

import pytest
import torch
from support.toy_training import assert_same_checkpoint, make_config, start, toy_data

from cpfast.train import loop, metrics, report, run
from cpfast.train.errors import Diverged, UserError
from cpfast.train.metrics import EpochMetrics
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")
# since version 0.1.0
NEW = {
    "settings": {}, "bias": None, "scored_samples": 0, "measured_samples": 0, "censored": False,
    "criteria": {}, "chance": None, "flops": None, "measured_flops": None, "guard": None,
    "communication": {"ranks": 1, "collectives": 0, "bytes": 0, "sync_bytes": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 7},
        {"epoch": -1},
        {"stream": {"index": torch.tensor([30]), "draw": torch.tensor([0]),
                    "weight": torch.ones(1)}},
    ],
)  # fmt: skip
def test_a_checkpoint_out_of_range_is_named(tmp_path, change):
    config, data = make_config(), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    folder.save_checkpoint({**folder.checkpoint(), **change})
    with pytest.raises(
        UserError, match=r"last.pt: (does not fit the|not a checkpoint of a cpfast) run"
    ):
        run.train(config, data, folder)


def test_divergence_names_epoch_and_value_and_keeps_the_last_epoch(tmp_path):
    config, data = make_config(epochs=3, lr=0.05), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    state = folder.checkpoint()
    state["model"]["head.bias"][0] = math.nan
    folder.save_checkpoint(state)
    with pytest.raises(Diverged, match="training loss of epoch 2 is nan"):
        run.train(config, data, folder)
    assert folder.checkpoint()["epoch"] == 1 and len(folder.metrics()) == 1


def test_checkpoint_of_another_run(tmp_path):
    data, first, second = toy_data(), make_config(epochs=2), make_config(epochs=2, seed=1)
    a, b = start(tmp_path / "a", first), start(tmp_path / "b", second)
    run.train(first, data, a, epochs=1)
    run.train(second, data, b, epochs=1)
    (b.path / "last.pt").write_bytes((a.path / "last.pt").read_bytes())
    with pytest.raises(UserError, match=r"b/last.pt: of another run \(it differs in seed\)"):
        run.train(second, data, b)


@pytest.mark.parametrize(
    "change",
    [
        {"config": "none"},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": []},
        {"model": 3},
        {"pruner": None},
        {"schedule": None},
        {"rotation": {}},
        {"detector": ["x"]},
    ],
)
def test_a_malformed_checkpoint_is_named(tmp_path, change):
    config, data = make_config(epochs=2), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    folder.save_checkpoint({**folder.checkpoint(), **change})
    with pytest.raises(UserError, match=r"last.pt: does not fit the run"):
        run.train(config, data, folder)


@pytest.mark.parametrize(("epochs", "done"), [(3, 2), (1, 1), (2, 2), (2, 1)])
def test_a_missing_checkpoint_does_not_cost_the_metrics(tmp_path, epochs, done):
    config, data = make_config(epochs=epochs, at=1), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=done)
    (folder.path / "last.pt").unlink()
    before = folder.metrics()
    with pytest.raises(UserError, match=rf"last.pt: missing, though {done} of {epochs} epochs"):
        run.train(config, data, folder)
    assert folder.metrics() == before


@pytest.mark.parametrize("call", [0, 1])
def test_a_disk_full_at_the_first_checkpoints(tmp_path, monkeypatch, call):
    config, data, calls = make_config(epochs=1, at=1), toy_data(), []
    whole, folder = (start(tmp_path / name, config) for name in ("whole", "run"))
    run.train(config, data, whole)
    real = RunFolder.save_checkpoint

    def full(self, state):
        calls.append(state["epoch"])
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run.train(config, data, folder)
    assert calls == [0, 1][: call + 1] and len(folder.metrics()) == call
    run.train(config, data, folder)
    assert_same_checkpoint(whole, folder)
    assert len(folder.metrics()) == 1


def test_energy_is_stored_before_the_last_checkpoint(tmp_path, monkeypatch):
    config, data = make_config(epochs=2), toy_data()
    folder = start(tmp_path / "run", config)
    real = RunFolder.save_energy

    def full(self, energy):
        if (self.epochs(), len(self.metrics())) == (2, 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, energy)

    monkeypatch.setattr(RunFolder, "save_energy", full)
    with pytest.raises(OSError, match="No space left"):
        run.train(config, data, folder)
    run.train(config, data, folder)
    assert folder.energy()["seconds"] > sum(x["seconds"]["train"] for x in folder.metrics())


def test_weights_spoilt_by_the_last_step_are_noticed(tmp_path, monkeypatch):
    config, data = make_config(method="full", epochs=2, detect=False), toy_data()
    folder = start(tmp_path / "run", config)
    real = loop.evaluate

    def spoilt(training, progress=None):
        if training.epoch == 2:
            with torch.no_grad():
                next(training.model.parameters()).fill_(math.inf)
        return real(training, progress)

    monkeypatch.setattr(loop, "evaluate", spoilt)
    with pytest.raises(Diverged, match="the test loss of epoch 2 is nan"):
        run.train(config, data, folder)
    assert len(folder.metrics()) == folder.epochs() == 1


@pytest.mark.parametrize(
    "key", [*sorted(EpochMetrics.__annotations__.keys() - NEW.keys() - {"epoch"}), "selection"]
)
def test_a_line_of_metrics_that_lacks_something_is_named(tmp_path, key):
    config = make_config(epochs=1, at=1)
    folder = start(tmp_path / "run", config)
    line = loop.train_epoch(loop.Training(config, toy_data()))
    del (line["seconds"] if key == "selection" else line)[key]
    folder.restore_metrics([json.dumps(line)])
    with pytest.raises(UserError, match=rf"metrics.jsonl, line 1: damaged .line.*: no '{key}'"):
        report.summarise(folder)


def test_a_line_of_metrics_of_wrong_types_is_named(tmp_path):
    config = make_config(epochs=1, at=1)
    folder = start(tmp_path / "run", config)
    whole = loop.train_epoch(loop.Training(config, toy_data()))
    report.run_table(summarised(folder, whole))
    seconds = metrics.Seconds.__annotations__
    keys = [(key,) for key in metrics._FORM.forms] + [("seconds", key) for key in seconds]
    for *outer, key in keys:
        for wrong in (True, [1], {"a": None}, 10**400, math.inf if key != "slope" else []):
            line = copy.deepcopy(whole)
            (line["seconds"] if outer else line)[key] = wrong
            with pytest.raises(UserError, match="line 1: damaged") as raised:
                summarised(folder, line)
            assert "\n" not in str(raised.value)


def summarised(folder, line):
    folder.restore_metrics([json.dumps(line)])
    return report.summarise(folder)


def test_lines_are_as_they_are_described_and_those_of_an_earlier_version_are_read(tmp_path):
    config = make_config(epochs=1, at=1)
    folder = start(tmp_path / "run", config)
    line = loop.train_epoch(loop.Training(config, toy_data()))
    assert line.keys() == EpochMetrics.__annotations__.keys()
    old = {key: value for key, value in line.items() if key not in NEW}
    assert summarised(folder, old)["metrics"] == [line | NEW]


def test_data_that_changed(tmp_path):
    config = make_config(epochs=2)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder, epochs=1)
    with pytest.raises(UserError, match="of other data: the run began with"):
        run.train(config, toy_data(seed=1), folder)


@pytest.mark.parametrize("cut", ["emptied", "last line", "damaged", "removed"])
def test_metrics_changed_between_two_runs_come_back(tmp_path, capsys, cut):
    config, data = make_config(epochs=3), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=2)
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    if cut == "removed":
        path.unlink()
    else:
        path.write_bytes(
            {"emptied": b"", "last line": whole[: whole.index(b"\n") + 1],
             "damaged": b"x" + whole[1:]}[cut]
        )  # fmt: skip
    run.train(config, data, folder, epochs=2)  # as `cpfast train --resume` of a finished run
    assert path.read_bytes() == whole
    note = "metrics.jsonl: damaged, or lines are missing; it is written again from last.pt"
    assert note in capsys.readouterr().err
    run.train(config, data, folder)
    assert path.read_bytes().startswith(whole) and len(folder.metrics()) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "metrics.jsonl").write_text(""), "metrics.jsonl: 0 bytes, expected"),
        (lambda path: shutil.rmtree(path), "run: removed, moved or emptied"),
        (lambda path: path.rename(path.with_name("moved")), "run: removed, moved or emptied"),
        (lambda path: [p.unlink() for p in path.iterdir()], "run: removed, moved or emptied"),
        (lambda path: (path / "config.json").unlink(), "run: removed, moved or emptied"),
    ],
    ids=["cut", "removed", "moved", "emptied", "config"],
)
def test_a_folder_changed_in_mid_run_is_noticed_at_the_next_epoch(
    tmp_path, monkeypatch, change, message
):
    config, data = make_config(epochs=6), toy_data()
    folder, epochs = start(tmp_path / "run", config), []
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        epochs.append(training.epoch)
        if training.epoch == 2:
            change(folder.path)
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    with pytest.raises(UserError, match=message) as raised:
        run.train(config, data, folder)
    assert "\n" not in str(raised.value) and epochs == [0, 1, 2]
    if folder.path.exists():  # and nothing is left in a folder that was emptied
        assert message.startswith("metrics") or not (folder.path / "energy.json").exists()
    monkeypatch.undo()
    for rest in (folder, RunFolder(tmp_path / "moved")):
        if rest.is_run():
            run.train(config, data, rest)
            assert len(rest.metrics()) == 6
