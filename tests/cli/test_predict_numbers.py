"""`cpfast predict` of tables and of time series, in the files that they are trained from."""

import csv
import io
import json

import numpy as np
import pytest

import cpfast
from cpfast import cli
from cpfast.train import data as data_sets

pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--epochs", "3", "--batch-size", "8", "--threads", "1", "--no-energy", "--no-plot", "-q"]
N = 60


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def frame():
    """Numbers of which some are missing, categories, an id, and classes that follow from both."""
    random = np.random.default_rng(0)
    size, colour = random.normal(size=N), random.choice(["red", "green", "blue"], N)
    classes = np.where((size > 0) & (colour != "red"), "big", "small")
    size[3], colour = np.nan, np.where(np.arange(N) == 5, None, colour)
    return pandas.DataFrame(
        {"id": range(N), "size": size, "colour": colour, "weight": size**2, "species": classes}
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table's folder, and a run that was trained on it."""
    root = tmp_path_factory.mktemp("table")
    frame().to_csv(root / "table.csv", index=False)
    arguments = ["--data", str(root / "table.csv"), "--label", "species", *QUICK]
    assert cli.main(["train", *arguments, "--out", str(root / "run")]) == 0
    return root


def predicted(capsys, *arguments, status=0):
    capsys.readouterr()
    assert cli.main(["predict", *map(str, arguments)]) == status
    output = capsys.readouterr()
    return rows_of(output.out), output.err


def test_rows_are_prepared_as_those_of_the_training_were(table, tmp_path, capsys):
    # In another order, with columns more and without the classes; of test rows, which are known
    # from the data set that the training saw.
    whole = frame()
    (tmp_path / "new.csv").write_text(
        whole.drop(columns=["species", "id"])[["weight", "colour", "size"]]
        .assign(more="x").to_csv(index=False)
    )  # fmt: skip
    rows, _ = predicted(capsys, table / "run", tmp_path / "new.csv")
    assert [row["file"] for row in rows] == [f"{tmp_path / 'new.csv'}:{n}" for n in range(1, N + 1)]
    same, _ = predicted(capsys, table / "run", table / "table.csv")  # labels are ignored
    assert [r["probability"] for r in same] == [r["probability"] for r in rows]
    model = cpfast.load(table / "run")
    dataset = data_sets.load(str(table / "table.csv"), label="species")
    known = model.predict(dataset.test_values)
    of_rows = {(r["class"], r["probability"]) for r in rows}
    for name, shares in zip(known.classes, known.probabilities, strict=True):
        assert (name, f"{float(shares.max()):.6f}") in of_rows
    assert len(model.predict(str(tmp_path / "new.csv")).classes) == N


def test_parquet_and_arrays(table, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    frame().drop(columns="species").to_parquet(tmp_path / "new.parquet")
    rows, _ = predicted(capsys, table / "run", tmp_path / "new.parquet")
    expected, _ = predicted(capsys, table / "run", table / "table.csv")
    assert [r["probability"] for r in rows] == [r["probability"] for r in expected]
    model = cpfast.load(table / "run")
    assert model.description["input"]["columns"][0][0] == "size"
    values = model.input.read(table / "table.csv")
    np.savez(tmp_path / "new.npz", x=values.numpy())
    rows, _ = predicted(capsys, table / "run", tmp_path / "new.npz")
    assert [r["probability"] for r in rows] == [r["probability"] for r in expected]


def test_what_does_not_fit_is_named_and_the_rest_predicted(table, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("size,weight\n1,2\n")
    (tmp_path / "b.csv").write_text("size,weight,colour\nlarge,2,red\n")
    (tmp_path / "c.csv").write_text("size,weight,colour\n1,2,violet\n")
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)))
    np.savez(tmp_path / "e.npz", p=np.zeros((3, 5)), q=np.zeros((3, 5)))
    np.savez(tmp_path / "f.npz", x=np.full((2, 5), np.nan))
    (tmp_path / "g.jpg").touch()
    files = [tmp_path / f"{name}" for name in
             ("a.csv", "b.csv", "c.csv", "d.npz", "e.npz", "f.npz", "g.jpg")]  # fmt: skip
    rows, errors = predicted(capsys, table / "run", *files, status=1)
    assert [row["file"] for row in rows] == [str(tmp_path / "c.csv")]  # no category is known
    for message in (
        "a.csv: no column 'colour', which the model was trained on", "b.csv: column 'size'",
        "d.npz: samples of 2; the model takes 5", "e.npz: which array holds the samples?",
        "f.npz: sample 1 holds a number that is not finite", "g.jpg: no file of numbers (.csv",
    ):  # fmt: skip
        assert message in errors, message
    assert len(errors.splitlines()) == 6


def test_a_model_of_arrays_knows_no_columns(tmp_path, capsys):
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 3))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    run = tmp_path / "run"
    assert cli.main(["train", "--data", str(tmp_path / "data.npz"), *QUICK, "--out", str(run)]) == 0
    rows, _ = predicted(capsys, run, tmp_path / "data.npz")
    assert len(rows) == 40
    (tmp_path / "new.csv").write_text("a,b,c\n1,2,3\n")
    _, errors = predicted(capsys, run, tmp_path / "new.csv", status=1)
    assert "knows no columns by their names; give it an .npz" in errors


def series(names, header="@classlabel true 0 1"):
    lines = [f"{'1,2,3,4,5,6,7,8' if n % 2 else '8,7,6,5,4,3,2,1'}{name}" for n, name in
             enumerate(names)]  # fmt: skip
    return "\n".join(["@problemname Up", header, "@data", *lines]) + "\n"


def test_time_series(tmp_path, capsys):
    folder, run = tmp_path / "Up", tmp_path / "run"
    folder.mkdir()
    (folder / "Up_TRAIN.ts").write_text(series([f":{n % 2}" for n in range(16)]))
    (folder / "Up_TEST.ts").write_text(series([f":{n % 2}" for n in range(6)]))
    assert cli.main(["train", "--data", str(folder), *QUICK, "--out", str(run)]) == 0
    rows, _ = predicted(capsys, run, folder / "Up_TEST.ts", "--top", "2")
    assert len(rows) == 6 and set(rows[0]) >= {"class_2", "probability_2"}
    (tmp_path / "new.ts").write_text(series([""] * 6, "@classlabel false"))
    without, _ = predicted(capsys, run, tmp_path / "new.ts", "--top", "2")
    assert [r["probability"] for r in without] == [r["probability"] for r in rows]
    # a folder has its files
    found, _ = predicted(capsys, run, folder)
    assert len(found) == 22


def test_a_description_with_other_columns_is_refused(table, tmp_path, capsys):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((table / "run" / name).read_bytes())
    described = json.loads((tmp_path / "model.json").read_text())
    described["input"]["columns"] = [["size", "large", []]]
    (tmp_path / "model.json").write_text(json.dumps(described))
    _, error = predicted(capsys, tmp_path, table / "table.csv", status=2)
    assert "model.json: damaged (columns[0][1]" in error
