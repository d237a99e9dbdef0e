"""`cpfast eval` and `cpfast predict`, end to end."""

import csv
import io
import json

import numpy as np
import pytest

import cpfast
from cpfast import cli

pytest.importorskip("PIL")
from PIL import Image

CLASSES = ("blue", "green", "red")
QUICK = ["--model", "cnn", "--epochs", "3", "--batch-size", "8", "--lr", "0.05", "--eval-every",
         "1", "--repeats", "2", "--threads", "1", "--no-energy", "--no-plot"]  # fmt: skip


def photo(colour, size, generator):
    pixels = generator.integers(0, 80, (*size, 3), dtype=np.uint8)
    pixels[..., ("red", "green", "blue").index(colour)] += 150
    return Image.fromarray(pixels)


def write_photos(root, count, generator, classes=CLASSES):
    """Of any sizes."""
    for colour in classes:
        (root / colour).mkdir(parents=True)
        for number in range(count):
            size = generator.integers(12, 40, 2)
            photo(colour, size, generator).save(root / colour / f"{number}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of them, and a run that was trained on it."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", 12, np.random.default_rng(0))
    write_photos(root / "test", 4, np.random.default_rng(1))
    run = root.parent / f"{root.name}-run"
    arguments = ["train", "--data", str(root), "--image-size", "12", *QUICK, "--out", str(run)]
    assert cli.main(arguments) == 0
    return root, run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def fails(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    return output.err


def test_eval_says_what_the_training_said(photos, capsys):
    _, run = photos
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--no-plot", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["accuracy"] == last["test_accuracy"]
    assert result["cross_entropy"] == pytest.approx(last["test_loss"], rel=1e-6)
    assert result["samples"] == 12 and result["top5"] is None and result["pictures"] == []
    assert np.array(result["confusion"]).sum(1).tolist() == [4, 4, 4]
    assert [one["name"] for one in result["classes"]] == list(CLASSES)


@pytest.mark.needs("matplotlib")
def test_eval_draws_and_prints_a_table(photos, tmp_path, capsys):
    _, run = photos
    assert cli.main(["eval", str(run), "--best", "--out", str(tmp_path / "pictures")]) == 0
    out = capsys.readouterr().out
    assert "balanced accuracy" in out and "precision" in out and "of 12 samples" in out
    for name in ("confusion.png", "calibration.png"):
        assert str(tmp_path / "pictures" / name) in out
        assert Image.open(tmp_path / "pictures" / name).size > (600, 500)


def test_eval_of_other_data_matches_classes_by_name(photos, tmp_path, capsys):
    _, run = photos
    write_photos(tmp_path / "new", 5, np.random.default_rng(2), ("red", "green"))
    arguments = ["eval", str(run), "--data", str(tmp_path / "new"), "--no-plot", "--json"]
    assert cli.main([*arguments, "--split", "all"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 10
    assert [one["samples"] for one in result["classes"]] == [0, 5, 5]
    assert result["classes"][0]["recall"] is None
    (tmp_path / "new" / "red").rename(tmp_path / "new" / "violet")
    message = fails(capsys, *arguments)
    assert "the model does not know class 'violet' (it knows blue, green, red)" in message
    x, y = np.zeros((4, 9, 9), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    message = fails(capsys, *arguments[:2], "--data", str(tmp_path / "a.npz"))
    assert "images of 9x9x1; the model takes 12x12x3" in message


def test_predict_files_and_folders_of_any_sizes(photos, tmp_path, capsys):
    _, run = photos
    generator = np.random.default_rng(3)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    photo("red", (30, 20), generator).save(tmp_path / "one.jpg", quality=95)
    photo("green", (15, 50), generator).save(tmp_path / "deep" / "er" / "two.png")
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    capsys.readouterr()
    paths = [str(tmp_path / "one.jpg"), str(tmp_path / "deep")]
    assert cli.main(["predict", str(run), *paths, "--top", "2"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["file"] for row in rows] == [paths[0], str(tmp_path / "deep/er/two.png")]
    found = cpfast.load(run).predict([row["file"] for row in rows])
    for row, name, shares in zip(rows, found.classes, found.probabilities, strict=True):
        assert row["class"] == name
        values = shares.sort(descending=True).values.tolist()
        for column, value in zip(("probability", "probability_2"), values[:2], strict=True):
            assert float(row[column]) == pytest.approx(value, abs=1e-5)


def test_predict_names_what_it_cannot_read_and_goes_on(photos, tmp_path, capsys):
    _, run = photos
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    photo("blue", (9, 9), np.random.default_rng(0)).save(tmp_path / "good.png")
    paths = [str(tmp_path / name) for name in ("bad.png", "none.png", "empty", "good.png")]
    capsys.readouterr()
    assert cli.main(["predict", str(run), *paths, "--out", str(tmp_path / "a.csv")]) == 1
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 3
    for path, line in zip(paths, output.err.splitlines(), strict=False):
        assert path in line
    rows = rows_of((tmp_path / "a.csv").read_text())
    assert [list(row) for row in rows] == [["file", "class", "probability"]]
    assert rows[0]["file"] == paths[-1] and rows[0]["class"] in CLASSES


def test_what_cannot_be_asked_is_one_line(photos, tmp_path, capsys):
    _, run = photos
    assert "no trained model here" in fails(capsys, "eval", str(tmp_path))
    assert "no trained model here" in fails(capsys, "predict", str(tmp_path), "a.png")
    assert "--top must be at least 1" in fails(capsys, "predict", str(run), "a", "--top", "0")
    out = str(tmp_path / "none" / "a.csv")
    assert "--out" in fails(capsys, "predict", str(run), "a", "--out", out)
