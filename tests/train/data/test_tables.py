"""Tables in files: what becomes of each column, and what is refused and how."""

import numpy as np
import pytest
import torch

from cpfast.train import data
from cpfast.train.data import columns, tables
from cpfast.train.errors import MissingLibrary, UserError

pandas = pytest.importorskip("pandas")
COUNT = 20


def frame(**changes):
    """Numbers 0 to 19, a colour, and a class by the parity."""
    made = {
        "number": np.arange(COUNT) + 0.5,
        "colour": ["red", "green", "blue", "red"] * 5,
        "flag": [True, False] * 10,
        "class": ["odd" if place % 2 else "even" for place in range(COUNT)],
        **changes,
    }
    return pandas.DataFrame({key: value for key, value in made.items() if value is not None})


def write(path, made):
    if path.suffix == ".parquet":
        made.to_parquet(path)
    else:
        made.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def everything(found):
    return (
        torch.cat([found.train_values, found.test_values]),
        torch.cat([found.train_labels, found.test_labels]),
    )


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", pytest.param(".parquet", marks=pytest.mark.needs("pyarrow"))]
)
def test_numbers_stay_and_texts_are_one_hot(tmp_path, suffix):
    path = write(tmp_path / f"toy{suffix}", frame())
    assert data.kind_of(path) == "table"
    found = data.load(path)
    assert (found.train_size, found.test_size, found.classes) == (16, 4, ("even", "odd"))
    values, labels = everything(found)
    assert found.shape == (5,)
    assert sorted(values[:, 0].tolist()) == [place + 0.5 for place in range(COUNT)]
    for row, label in zip(values.tolist(), labels.tolist(), strict=True):
        place = int(row[0])
        assert label == place % 2 and row[4] == 1 - place % 2
        # blue, green, red
        assert row[1:4] == [float(c == ("red", "green", "blue", "red")[place % 4]) for c in
                            ("blue", "green", "red")]  # fmt: skip
    assert found.note == "a fifth of each class, drawn by a fixed seed, is held out for testing"
    assert data.load(path).fingerprint() == found.fingerprint()
    assert data.load(path, limit=6).train_size == 6


def test_which_column_holds_the_classes(tmp_path):
    path = write(tmp_path / "a.csv", frame())
    assert data.load(path, label="colour").classes == ("blue", "green", "red")
    renamed = frame().rename(columns={"class": "Target"})[["Target", "number", "colour"]]
    assert data.load(write(tmp_path / "b.csv", renamed)).classes == ("even", "odd")
    last = frame().rename(columns={"class": "parity"})
    found = data.load(write(tmp_path / "c.csv", last))
    assert "classes are the last column, 'parity' (--label chooses)" in found.note
    with pytest.raises(UserError, match="no such column; did you mean 'colour'.$"):
        data.load(path, label="color")
    numbers = frame(**{"class": [10.0, 9.0] * 10})
    assert data.load(write(tmp_path / "d.csv", numbers)).classes == ("9", "10")


def test_missing_values(tmp_path):
    made = frame()
    made.loc[3, "number"] = None
    made.loc[5, "colour"] = None
    made.loc[7, "class"] = None
    found = data.load(write(tmp_path / "a.csv", made))
    values, _ = everything(found)
    assert len(values) == COUNT - 1
    assert "1 row without 'class' left out" in found.note
    assert "2 missing values (number 1, colour 1): the training mean of numbers" in found.note
    rows = values.tolist()
    absent = [row for row in rows if row[0] not in [p + 0.5 for p in range(COUNT)]]
    train = [r[0] for r in found.train_values.tolist() if r not in absent]
    if len(absent) == 1:  # the mean may be one of the numbers
        assert absent[0][0] == pytest.approx(np.mean(train))
    assert [row[1:4] for row in rows if row[0] == 5.5] == [[0.0, 0.0, 0.0]]
    question = (tmp_path / "a.csv").read_text().replace("\n0.5,", "\n?,")
    (tmp_path / "b.csv").write_text(question)
    assert "number 2" in data.load(str(tmp_path / "b.csv")).note


def test_a_folder_with_train_and_test(tmp_path):
    write(tmp_path / "train.csv", frame())
    test = frame()[:7]
    test.loc[0, "colour"] = "violet"  # not of training: none of its categories
    write(tmp_path / "test.csv", test)
    found = data.load(str(tmp_path))
    assert data.kind_of(str(tmp_path)) == "table"
    assert (found.train_size, found.test_size, found.name) == (COUNT, 7, tmp_path.name)
    assert found.train_values[:, 0].tolist() == [place + 0.5 for place in range(COUNT)]
    assert found.test_values[0].tolist() == [0.5, 0, 0, 0, 1]
    write(tmp_path / "test.csv", test.drop(columns="class"))
    alone = data.load(str(tmp_path))
    assert alone.test_size == 4 and "the test rows have no 'class' and are not used" in alone.note
    write(tmp_path / "test.csv", test.drop(columns="number"))
    with pytest.raises(UserError, match="the test rows have no column 'number'"):
        data.load(str(tmp_path))
    write(tmp_path / "test.csv", test.assign(**{"class": "neither"}))
    with pytest.raises(UserError, match="test rows have class 'neither', no training row has it"):
        data.load(str(tmp_path))


def test_ids_are_left_out(tmp_path):
    made = frame(Id=np.arange(COUNT), empty=[None] * COUNT)
    found = data.load(write(tmp_path / "a.csv", made))
    assert found.shape == (5,) and "left out: 'Id', 'empty', ids or empty" in found.note
    # a number of that name that is none
    other = data.load(write(tmp_path / "b.csv", frame(Id=np.arange(COUNT) // 2)))
    assert other.shape == (6,)


@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_other_separators(tmp_path, separator):
    frame().to_csv(tmp_path / "a.csv", index=False, sep=separator)
    assert data.load(str(tmp_path / "a.csv")).shape == (5,)


LONG = [f"text {number}" for number in range(200)]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (frame(day=["2024-01-05"] * COUNT), "column 'day' holds dates such as '2024-01-05'"),
        (frame(day=["5.1.2024", "6/1/24"] * 10), "column 'day' holds dates such as '5.1.2024'"),
        (pandas.DataFrame({"words": LONG, "class": ["a", "b"] * 100}),
         "column 'words' holds 160 different texts, of which 64 at most are categories"),
        (frame(**{"class": np.arange(COUNT) + 0.25}), "numbers such as 0.25, not classes"),
        (frame(**{"class": ["a"] * COUNT}), "only one class, 'a'"),
        (frame(**{"class": ["b"] + ["a"] * (COUNT - 1)}), "only one sample of class 'b'"),
        (frame(number=[np.inf] + [0.0] * (COUNT - 1)), "not finite"),
        (frame(number=None, colour=None, flag=None, empty=[None] * COUNT), "no column beside"),
        (frame(number=None, colour=None, flag=None), "only one column, 'class'"),
        (frame()[:0], "no rows"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, made, message):
    path = write(tmp_path / "a.csv", made)
    with pytest.raises(UserError, match=message) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.needs("pyarrow")
def test_the_last_column_of_parquet_is_not_taken_for_the_classes(tmp_path):
    last = frame().rename(columns={"class": "parity"})
    with pytest.raises(UserError, match=r"which column holds the classes\? --label COLUMN, of"):
        data.load(write(tmp_path / "c.parquet", last))


@pytest.mark.needs("pyarrow")
def test_dates_of_parquet(tmp_path):
    made = frame(day=pandas.date_range("2024-01-01", periods=COUNT))
    with pytest.raises(UserError, match="column 'day' holds dates"):
        data.load(write(tmp_path / "a.parquet", made))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable table"),
        (b"a,b\n1,2,3\n1,2,3,4\n", "not a readable table"),
        (b"5.1,3.5,setosa\n4.9,3.0,setosa\n", r"the first line holds numbers \(5.1\)"),
        (b"\xff\xfe\x00,b\n1,2\n", "not a readable table"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        data.load(str(tmp_path / "a.csv"))
    assert str(caught.value).startswith(str(tmp_path / "a.csv"))


@pytest.mark.needs("pyarrow")
def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(UserError, match="not a readable table"):
        data.load(str(tmp_path / "a.parquet"))


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", frame())

    def missing(module, purpose):
        raise MissingLibrary(module)

    monkeypatch.setattr(tables, "require", missing)
    with pytest.raises(MissingLibrary, match="pip install pandas pyarrow"):
        data.load(path)


def test_too_many_classes(tmp_path):
    count = 2 * columns.MOST_CLASSES + 2
    made = pandas.DataFrame({"x": np.arange(count) / 2, "y": np.arange(count) // 2})
    with pytest.raises(UserError, match="1,001 different values, 1,000 classes at most"):
        data.load(write(tmp_path / "a.csv", made))


def test_a_label_goes_with_tables_alone(tmp_path):
    with pytest.raises(UserError, match=r"^--label goes with a table; got --data digits$"):
        data.load("digits", label="y")
    (tmp_path / "a.txt").write_text("x" * 5000)
    with pytest.raises(UserError, match=r"^--label goes with a table; got .*a\.txt$"):
        data.load(str(tmp_path / "a.txt"), label="y")


# --- arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [((7,), np.float64, "table"), ((7,), np.int32, "table"), ((2, 9), np.float16, "series")],
)
def test_npz_of_numbers(tmp_path, shape, dtype, kind):
    values = np.random.default_rng(0).integers(0, 99, (15, *shape)).astype(dtype)
    labels = np.arange(15) % 3
    np.savez(
        tmp_path / "a.npz", x_train=values, y_train=labels, x_test=values[:6], y_test=labels[:6]
    )
    found = data.load(str(tmp_path / "a.npz"))
    assert data.kind_of(str(tmp_path / "a.npz")) == found.reads == kind
    assert found.train_values.dtype == torch.float32 and found.shape == shape
    np.testing.assert_array_equal(found.train_values.numpy(), values.astype(np.float32))
    assert found.test_labels.tolist() == labels[:6].tolist() and found.classes == ("0", "1", "2")
    np.savez(tmp_path / "b.npz", x=values, y=labels, more=labels)
    whole = data.load(str(tmp_path / "b.npz"))
    assert (whole.train_size, whole.test_size) == (12, 3)
    assert "held out" in whole.note and "not used: more" in whole.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((6, 4))}, r"x_test must be numbers .* same shape.* \[6, 4\]"),
        ({"x_test": np.zeros((6, 7), np.uint8)}, r"x_test must be numbers .* got uint8 \[6, 7\]"),
        ({"x_train": np.full((15, 7), np.nan)}, "sample 0 holds a number that is not finite"),
        ({"x_train": np.full((15, 7), 1e39)}, "not finite in float32"),
        ({"y_train": np.arange(14) % 3}, r"y_train must be \[15\]"),
        ({"y_train": np.zeros(15)}, "only one class"),
        ({"y_test": np.full(6, 3)}, "y_test holds label 3"),
    ],
)
def test_npz_of_numbers_that_is_refused(tmp_path, change, message):
    made = {
        "x_train": np.ones((15, 7)), "y_train": np.arange(15) % 3,
        "x_test": np.ones((6, 7)), "y_test": np.arange(6) % 3,
    }  # fmt: skip
    np.savez(tmp_path / "a.npz", **{**made, **change})
    with pytest.raises(UserError, match=message):
        data.load(str(tmp_path / "a.npz"))


def test_images_need_a_split(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((15, 9, 9), np.uint8), y=np.arange(15) % 3)
    with pytest.raises(UserError, match="images in 'x' without a split; expected x_train"):
        data.load(str(tmp_path / "a.npz"))
