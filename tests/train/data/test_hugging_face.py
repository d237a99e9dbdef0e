"""What Hugging Face's datasets has saved: images, text and tables."""

import io
import json

import numpy as np
import pytest

from cpfast.train import data
from cpfast.train.errors import UserError

hugging_face = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


def picture(value, size=(12, 10), mode="RGB"):
    made = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).convert(mode).save(made, "png")
    return {"bytes": made.getvalue(), "path": None}


def images(count, **options):
    features = hugging_face.Features(
        image=hugging_face.Image(), label=hugging_face.ClassLabel(names=["night", "day"])
    )
    rows = [{"image": picture(10 * n, **options), "label": n % 2} for n in range(count)]
    return hugging_face.Dataset.from_list(rows, features=features)


def test_images_with_a_split(tmp_path):
    splits = {"train": images(10), "test": images(4), "other": images(2)}
    hugging_face.DatasetDict(splits).save_to_disk(tmp_path / "toy")
    path = str(tmp_path / "toy")
    found = data.load(path)
    assert data.kind_of(path) == found.reads == "images"
    assert (found.shape, found.classes, found.name) == ((12, 10, 3), ("night", "day"), "toy")
    assert found.train_images[:, 0, 0, 0].tolist() == [10 * n for n in range(10)]
    assert found.test_labels.tolist() == [0, 1, 0, 1]
    small = data.load(path, limit=4, image_size=(8, 9))
    assert (small.shape == (8, 9, 3) and small.train_labels.tolist() == [0, 0, 1, 1]) or (
        sorted(small.train_labels.tolist()) == [0, 0, 1, 1]
    )
    assert "resized and cropped to 8x9" in small.note


def test_images_without_a_split_and_of_grey(tmp_path):
    images(10, mode="L").save_to_disk(tmp_path / "toy")
    found = data.load(str(tmp_path / "toy"))
    assert (found.train_size, found.test_size, found.shape) == (8, 2, (12, 10, 1))
    assert "a fifth of each class" in found.note
    for image, label in zip(found.train_images, found.train_labels, strict=True):
        assert image[0, 0, 0].item() // 10 % 2 == label


def test_text(tmp_path):
    documents = [f"{number:03}" * 60 for number in range(30)]
    made = hugging_face.Dataset.from_dict({"text": documents, "label": [0] * 30})
    made.save_to_disk(tmp_path / "toy")
    found = data.load(str(tmp_path / "toy"))
    assert data.kind_of(str(tmp_path / "toy")) == found.reads == "text"
    assert set(found.vocabulary) == set("0123456789\n")
    assert "text of column 'text'" in found.note and "a tenth of the documents" in found.note
    assert found.train_size == (27 * 181 - 2) // 128
    with pytest.raises(UserError, match=r"^--label does not go with .* which holds text$"):
        data.load(str(tmp_path / "toy"), label="label")


def test_table(tmp_path):
    features = hugging_face.Features(
        x=hugging_face.Value("float32"), kind=hugging_face.Value("string"),
        outcome=hugging_face.ClassLabel(names=["no", "yes"]),
    )  # fmt: skip
    rows = [{"x": float(n), "kind": "abc"[n % 3], "outcome": n % 2} for n in range(20)]
    made = hugging_face.Dataset.from_list(rows, features=features)
    hugging_face.DatasetDict(train=made, validation=made).save_to_disk(tmp_path / "toy")
    found = data.load(str(tmp_path / "toy"))
    assert data.kind_of(str(tmp_path / "toy")) == found.reads == "table"
    assert (found.shape, found.classes) == ((4,), ("no", "yes"))
    assert found.train_values[4].tolist() == [4, 0, 1, 0] and found.test_size == 20
    assert data.load(str(tmp_path / "toy"), label="kind").classes == ("a", "b", "c")


def test_what_is_refused(tmp_path):
    made = hugging_face.Dataset.from_dict({"x": [1.0, 2.0], "z": [3, 4]})
    hugging_face.DatasetDict(test=made).save_to_disk(tmp_path / "toy")
    with pytest.raises(UserError, match="no split train, only test"):
        data.load(str(tmp_path / "toy"))
    made.save_to_disk(tmp_path / "alone")
    with pytest.raises(UserError, match="which column holds the classes"):
        data.load(str(tmp_path / "alone"))
    (tmp_path / "alone" / "state.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="datasets cannot read it") as caught:
        data.load(str(tmp_path / "alone"))
    assert "\n" not in str(caught.value)
