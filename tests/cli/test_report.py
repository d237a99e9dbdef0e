"""`cpfast report` of several runs: one table, as text, CSV and JSON, and what differs."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from cpfast import cli

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = [
    "--threads", "1", "--epochs", "2", "--batch-size", "32", "--no-energy", "--no-plot", "--quiet",
    "--limit", "64",
]  # fmt: skip


def trained(out, *options):
    assert cli.main(["train", *QUICK, "--out", str(out), *options]) == 0
    return str(out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    table = out / "table.csv"
    table.write_text("x,y,label\n" + "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(120)))
    return [
        trained(out / "a"),
        trained(out / "b", "--seed", "1"),
        trained(out / "c", "--lr", "0.05"),
        trained(out / "d", "--data", str(table)),
    ]


def shown(capsys, *arguments):
    assert cli.main(["report", *arguments]) == 0
    return capsys.readouterr().out


def test_several_runs_are_one_table(runs, capsys):
    capsys.readouterr()
    lines = shown(capsys, *runs[:2], "--no-plot").splitlines()
    assert lines[0].split() == [
        "run", "data", "model", "method", "seed", "epochs", "accuracy", "%", "samples", "train",
        "s", "Wh", "period", "end",
    ]  # fmt: skip
    assert len(lines) == 4  # nothing differs but the seed
    for run, seed, line in zip(runs, "01", lines[2:], strict=False):
        stored = Path(run, "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in stored]
        cells = line.split()
        assert cells[:7] == [run, "digits", "(64", "images)", "cnn", "fast", seed]
        assert cells[7:9] == ["2", f"{100 * metrics[-1]['test_accuracy']:.2f}"]
        assert cells[9] == str(sum(m["backward_samples"] for m in metrics))


def test_what_differs_is_said(runs, capsys):
    capsys.readouterr()
    text = shown(capsys, runs[0], runs[2])
    assert "They differ in lr (0.2, 0.05)." in text and "do not compare" not in text
    text = shown(capsys, *runs)
    assert "Different data and models: these accuracies do not compare." in text
    assert "They also differ in" in text and "optimizer (sgd, adamw)" in text


def test_the_same_as_csv_and_as_json(runs, capsys):
    capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown(capsys, *runs, "--csv"))))
    documents = [json.loads(line) for line in shown(capsys, *runs, "--json").splitlines()]
    assert [r["run"] for r in rows] == [d["run"] for d in documents] == runs
    for r, d in zip(rows, documents, strict=True):
        assert float(r["test_accuracy"]) == d["test_accuracy"]
        assert (r["epochs"], r["planned_epochs"], r["seed"]) == ("2", "2", str(d["config"]["seed"]))
        assert math.isclose(float(r["seconds"]), d["seconds"]["train"])
        assert float(r["flops"]) == d["flops"] > 0
        assert r["kwh"] == r["perplexity"] == ""


def test_data_that_changed_in_between_are_told(runs, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "b" / name).write_bytes(Path(runs[1], name).read_bytes())
    described = json.loads(Path(runs[1], "model.json").read_text())
    described["data"]["fingerprint"] = "0"
    (tmp_path / "b/model.json").write_text(json.dumps(described))
    capsys.readouterr()
    assert "The data have changed between these runs" in shown(capsys, runs[0], str(tmp_path / "b"))


def test_a_folder_that_is_no_run_is_named(runs, tmp_path, capsys):
    for form in ("--no-plot", "--csv", "--json"):
        assert cli.main(["report", runs[0], str(tmp_path), form]) == 2
        captured = capsys.readouterr()
        assert f"{tmp_path}: no run" in captured.err and captured.out == ""


def test_a_finished_run_says_where_its_model_is_and_how_it_is_used(runs, capsys):
    capsys.readouterr()
    lines = shown(capsys, runs[0], "--no-plot").splitlines()
    (told,) = [line.split(maxsplit=1)[1] for line in lines if line.startswith("model ")]
    assert told == f"{runs[0]}/model.safetensors; to use it: cpfast predict {runs[0]} FILES"
    assert Path(runs[0], "model.safetensors").is_file()


def test_a_comparison_says_what_it_begins_with(runs, tmp_path, capsys):
    capsys.readouterr()
    options = ["--epochs", "1", "--limit", "64", "--limit-test", "50", "--seeds", "1",
               "--arms", "k1", "--no-energy", "--no-plot",
               "--out", str(tmp_path / "compared")]  # fmt: skip
    weights = f"{runs[0]}/model.safetensors"
    assert cli.main(["compare", *options, "--model", "cnn", "--weights", weights]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [x for x in lines if x.startswith("each run begins")]
    assert "tensors from" in line and weights in line
    assert any(x.startswith("digits (64 images, tested on 50), cnn") for x in lines)
    # of another network nothing fits, which is said before anything is run
    weights = f"{runs[3]}/model.safetensors"
    assert cli.main(["compare", *options[:-1], str(tmp_path / "b"), "--weights", weights]) == 2
    assert "nothing in it fits the model" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
