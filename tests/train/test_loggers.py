"""Where the metrics go: CSV, TensorBoard and Weights & Biases, also of a run that is resumed."""

import csv
import importlib
import json
import math
import struct

import pytest

from cpfast import cli
from cpfast.train import loggers
from cpfast.train.files import read_json
from cpfast.train.loggers import Log, named
from cpfast.train.loggers.csv import CsvLogger
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 4
OPTIONS = [
    "--threads", "1", "--epochs", str(EPOCHS), "--batch-size", "32", "--no-plot", "--quiet",
    "--method", "detector+prune", "--repeats", "2", "--criterion", "fixed", "--at", "2",
    "--limit", "96", "--eval-every", "2", "--seed", "3",
]  # fmt: skip


def train(out, *options):
    return cli.main(["train", *OPTIONS, "--no-energy", "--out", str(out), *options])


def rows_of(out):
    with open(out / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def checked(rows, out):
    """Rows say what metrics.jsonl says."""
    lines = RunFolder(out).metrics()
    assert [int(row["epoch"]) for row in rows] == [line["epoch"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert float(row["lr"]) == line["lr"]
        assert float(row["train/loss"]) == line["train_loss"]
        assert float(row["cpfast/rotation"]) == line["rotation_mean"]
        for layer, value in line["rotation"].items():
            assert float(row[f"cpfast/rotation/{layer}"]) == value
        assert math.isclose(
            float(row["cpfast/kept"]), line["planned_samples"] / line["repeats"] / 96
        )
        for tag, key in (
            ("test/accuracy", "test_accuracy"),
            ("test/loss", "test_loss"),
            ("cpfast/period_end", "period_end"),
        ):
            assert row[tag] == ("" if line[key] is None else str(float(line[key])))


def test_a_row_an_epoch(tmp_path):
    out = tmp_path / "run"
    assert train(out, "--log", "csv") == 0
    rows = rows_of(out)
    checked(rows, out)
    assert len(rows) == EPOCHS and rows[0]["test/accuracy"] == "" != rows[1]["test/accuracy"]
    assert rows[0]["cpfast/period_end"] == "" and rows[-1]["cpfast/period_end"] == "2.0"
    assert float(rows[-1]["cpfast/kept"]) < 1 == float(rows[0]["cpfast/kept"])
    assert rows[-1]["cpfast/energy_kwh"] == ""
    assert 'log = "csv"' in (out / "config.toml").read_text()


def stopped_and_resumed(out, after, *options):
    """Stopped once so many epochs are logged, of which the last is not stored."""
    taken = Log.epoch

    def stop(self, metrics, kwh):
        taken(self, metrics, kwh)
        if metrics["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "epoch", stop)
        assert train(out, *options) == 130
    assert RunFolder(out).epochs() == after - 1
    assert cli.main(["train", "--resume", "--out", str(out), "--quiet"]) == 0


def test_a_resumed_run_goes_on_in_its_file_without_doubling_epochs(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train(whole, "--log", "csv") == 0
    stopped_and_resumed(out, 3, "--log", "csv")
    assert (out / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_what_a_file_lacks_is_filled_in_and_what_it_alone_has_stays(tmp_path):
    out = tmp_path / "run"
    assert train(out) == 0 and not (out / "metrics.csv").exists()
    assert cli.main(["train", "--resume", "--out", str(out), "--quiet", "--log", "csv"]) == 0
    checked(rows_of(out), out)
    past = [{"lr": 1.0, "cpfast/energy_kwh": None}] * 2
    logger = CsvLogger(tmp_path, {}, [])
    logger.log(1, {"lr": 1.0, "cpfast/energy_kwh": 0.25})
    logger.log(2, {"lr": 1.0, "cpfast/energy_kwh": None})
    CsvLogger(tmp_path, {}, past)
    assert [row["cpfast/energy_kwh"] for row in rows_of(tmp_path)] == ["0.25", ""]
    (tmp_path / "metrics.csv").write_bytes(b"epoch,lr\n\xff\xfe,\n")
    CsvLogger(tmp_path, {}, past)
    assert [row["lr"] for row in rows_of(tmp_path)] == ["1.0", "1.0"]


def scalars(folder):
    """By tag, the steps and values that TensorBoard shows."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    stopped_and_resumed(out, 3, "--log", "tensorboard")
    shown, lines = scalars(out / "tensorboard"), RunFolder(out).metrics()
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4]  # once each
    for (_, value), line in zip(shown["cpfast/rotation"], lines, strict=True):
        assert value == pytest.approx(line["rotation_mean"], rel=1e-6)
    assert [step for step, _ in shown["test/accuracy"]] == [2, 4]
    assert shown["cpfast/period_end"] == [(2, 2.0), (3, 2.0), (4, 2.0)]
    layers = {f"cpfast/rotation/{name}" for name in lines[0]["rotation"]}
    assert layers < set(shown) and "cpfast/energy_kwh" not in shown


class Meter:
    def read(self):
        return {"seconds": 1.0, "kwh": 0.5, "components": {}}

    stop = read


def test_energy_is_logged_where_it_was_read(tmp_path, monkeypatch):
    from cpfast.train import energy, run

    monkeypatch.setattr(energy, "start", lambda config, folder: Meter())
    monkeypatch.setattr(run, "ENERGY_EVERY", 1e9)
    assert train(tmp_path / "run", "--log", "csv") == 0
    kwh = [row["cpfast/energy_kwh"] for row in rows_of(tmp_path / "run")]
    assert kwh == ["", "", "", "0.5"]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "run"
    assert train(out, "--log", "wandb,csv") == 0
    checked(rows_of(out), out)
    (run,) = (out / "wandb").glob("offline-run-*")
    name = (out / "wandb-id.txt").read_text()
    assert run.name.endswith(name) and (run / f"run-{name}.wandb").stat().st_size > 0
    history = recorded(run / f"run-{name}.wandb")
    assert [h["_step"] for h in history] == [1, 2, 3, 4]
    for values, line in zip(history, RunFolder(out).metrics(), strict=True):
        assert values["train/loss"] == pytest.approx(line["train_loss"])
        assert values["cpfast/rotation"] == pytest.approx(line["rotation_mean"])


def recorded(path):
    """What was logged, from the file that `wandb sync` would send: blocks of 32 KiB with records,
    each behind its checksum, its length and whether it is whole, begins, goes on or ends."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, place, record, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        room = -place % 32768
        if 0 < room < 7:
            place += room
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            parsed = records.Record.FromString(record)
            record = b""
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                keys = [item.key or "/".join(item.nested_key) for item in items]
                values = [json.loads(item.value_json) for item in items]
                found.append(dict(zip(keys, values, strict=True)))
    return found


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_said_before_anything_is_written(name, tmp_path, monkeypatch, capsys):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(
        loggers, "importlib", type("", (), {"import_module": staticmethod(missing)})
    )
    assert train(tmp_path / "run", "--log", name) == 2
    error = capsys.readouterr().err
    assert f"--log {name} needs {name}, which cannot be imported" in error
    assert f"pip install {name}" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_names_are_checked(tmp_path, capsys):
    assert named(" csv, wandb,csv,") == ("csv", "wandb") and named(None) == ()
    for text in ("mlflow", "csv,mlflow", ""):
        assert train(tmp_path / "run", "--log", text) == 2
        assert "--log must be one of csv, tensorboard, wandb; got" in capsys.readouterr().err


def test_the_first_process_alone_writes(tmp_path):
    from cpfast.cli import train as command

    class Joined:
        is_first = False

    class Training:
        config = type("", (), {"log": "csv", "to_dict": lambda self: {}})()
        data = type("", (), {"train_size": 3})()

    log = command._log(Training, RunFolder(tmp_path), Joined)
    log.begin([])
    assert log._opened == [] and not list(tmp_path.iterdir())
    Joined.is_first = True
    log = command._log(Training, RunFolder(tmp_path), Joined)
    log.begin([])
    assert len(log._opened) == 1


def test_a_stored_setting_of_another_logger_is_named(tmp_path):
    assert train(tmp_path / "run") == 0
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**read_json(path), "log": "mlflow"}))
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
