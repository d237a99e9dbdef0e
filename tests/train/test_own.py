"""Data, models and weights of people's own: what is accepted, and what is refused and how."""

import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from support.toy_training import assert_same_checkpoint, make_config, start, toy_data

from cpfast.train import data, loop, models, run, saved, weights
from cpfast.train.config import Config
from cpfast.train.data import own_data
from cpfast.train.errors import MissingLibrary, UserError
from cpfast.train.trained import load

pytestmark = pytest.mark.usefixtures("one_thread")

SOURCE = """
import numpy as np, torch
from torch import nn

class Pairs:
    classes = ["night", "day"]
    def __init__(self, count, make): self.count, self.make = count, make
    def __len__(self): return self.count
    def __getitem__(self, place): return self.make(place), place % 2

def image(place): return np.full((9, 8), 10 * place, np.uint8)
def images(): return Pairs(12, image), Pairs(4, image)
def row(place): return torch.tensor([place, 2.0 * place, 1])
def rows(): return Pairs(12, row), Pairs(4, row)
def series():
    x = np.random.default_rng(0).normal(size=(12, 2, 20))
    return x, np.arange(12) % 3, x[:5], torch.arange(5) % 3
def channels_first():
    x = torch.arange(12)[:, None, None, None].expand(12, 3, 9, 8).to(torch.uint8)
    return x, torch.arange(12) % 2, x[:4], torch.arange(4) % 2
def text(): return "abcd" * 500, "dcba" * 100
def tensor(place): return torch.zeros(3, 9, 9)
def scaled(): return Pairs(4, tensor), Pairs(4, tensor)
def ragged(): return Pairs(4, lambda p: np.zeros(p + 1)), Pairs(4, row)
def one(): return Pairs(4, row)
def numbers(): return 1, 2
def triples(): return [(1, 2, 3)], [(1, 2, 3)]
def empty(): return Pairs(0, row), Pairs(4, row)
def broken(): raise RuntimeError("no disk\\nmore")
value = 3

class Net(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.body, self.head = nn.Linear(features, 16), nn.Linear(16, outputs)
    def forward(self, x): return self.head(self.body(x.flatten(1)).relu())

def net(shape, outputs): return Net(int(np.prod(shape)), outputs)
def narrow(shape, outputs): return Net(int(np.prod(shape)), outputs + 1)
def wrong(shape, outputs): return Net(3, outputs)
def none(shape, outputs): return None
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the current folder, as a user has it, of a name of its own."""
    name = f"mine_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)
    own_data._converted.cache_clear()


def test_datasets_of_images(mine):
    found = data.load(f"{mine}:images")
    assert data.kind_of(f"{mine}:images") == found.reads == "images"
    assert (found.shape, found.classes, found.name) == ((9, 8, 1), ("night", "day"), "images")
    assert found.train_images[:, 0, 0, 0].tolist() == [10 * place for place in range(12)]
    assert found.test_labels.tolist() == [0, 1, 0, 1]
    some = data.load(f"{mine}:images", limit=4)
    assert some.train_labels.tolist() == sorted(some.train_labels.tolist(), key=lambda x: 0)
    assert torch.bincount(some.train_labels).tolist() == [2, 2]
    places = some.train_images[:, 0, 0, 0] // 10
    assert torch.equal(places % 2, some.train_labels)
    assert data.load(f"{mine}:channels_first").shape == (9, 8, 3)


def test_numbers_and_text(mine):
    rows = data.load(f"{mine}:rows")
    assert (rows.reads, rows.shape) == ("table", (3,))
    assert rows.train_values[5].tolist() == [5, 10, 1]
    series = data.load(f"{mine}:series")
    assert (series.reads, series.shape, series.outputs) == ("series", (2, 20), 3)
    text = data.load(f"{mine}:text", limit=3)
    assert (text.reads, text.vocabulary, text.train_size) == ("text", "abcd", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scaled", "images of float32; expected uint8, 0 to 255: leave out ToTensor"),
        ("ragged", r"train\[0\] is float64 \[1\], train\[1\] float64 \[2\]"),
        ("one", "it returns a Pairs; expected two datasets"),
        ("numbers", "train is a int; expected two datasets"),
        ("triples", r"train\[0\] is a tuple of 3, not \(input, label\)"),
        ("empty", "no train samples"),
        ("broken", r"RuntimeError: no disk, .*mine_.*\.py:\d+$"),
        ("value", "has no function value"),
        ("absent", "has no function absent"),
    ],
)
def test_data_that_is_refused_in_a_line(mine, name, message):
    with pytest.raises(UserError, match=rf"^--data {mine}:{name}: .*{message}") as caught:
        data.load(f"{mine}:{name}")
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported(tmp_path):
    with pytest.raises(UserError, match=r"^--data nowhere_at_all:f: cannot import nowhere_at_all"):
        data.load("nowhere_at_all:f")
    (tmp_path / "fails_early.py").write_text("x = 1\n1 / 0\n")
    with pytest.raises(UserError, match=r"ZeroDivisionError: .*fails_early\.py:2\)$"):
        data.load("fails_early:f")


def config_of(mine, **options):
    base = {"epochs": 3, "batch_size": 4, "method": "detector+prune", "energy": False}
    return Config.from_options({"data": f"{mine}:rows", "model": f"{mine}:net", **base, **options})


@pytest.mark.parametrize("kind", ["rows", "images", "series"])
def test_own_data_and_model_train_and_resume_to_the_bit(tmp_path, mine, kind):
    config = config_of(mine, data=f"{mine}:{kind}")
    assert config.flip == (kind == "images") and config.data == f"{mine}:{kind}"
    dataset = data.load(config.data)
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, dataset, whole)
    for epochs in (1, 3):
        run.train(config, dataset, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)
    assert Config.from_dict(config.to_dict(), tmp_path) == config


def test_a_model_is_used_afterwards_where_its_module_is_asked_for(tmp_path, mine):
    config = config_of(mine)
    folder = start(tmp_path / "run", config)
    run.train(config, data.load(config.data), folder)
    model = load(folder.path)
    assert model.predict(torch.tensor([[1.0, 2.0, 1.0]])).classes[0] in ("night", "day")
    del sys.modules[mine]
    with pytest.raises(UserError, match=rf"made by {mine}:net, .*--model {mine}:net, in Python"):
        load(folder.path)
    assert mine not in sys.modules
    assert saved.describe(folder.path)["architecture"]["name"] == f"{mine}:net"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("narrow", r"for inputs of \[2, 5\] it gives \[2, 4\]; expected logits \[2, 3\]"),
        ("wrong", r"it does not take inputs of \[2, 5\]"),
        ("none", "it returns a NoneType, not an nn.Module"),
        ("absent", "has no function absent"),
    ],
)
def test_models_that_are_refused_in_a_line(mine, name, message):
    x, y = torch.randn(20, 5), torch.arange(20) % 3
    dataset = data.FloatData(x, y, x, y, ("a", "b", "c"), "toy")
    config = make_config(data="/nowhere", model=f"{mine}:{name}", flip=False)
    with pytest.raises(UserError, match=rf"^--model {mine}:{name}: .*{message}") as caught:
        loop.Training(config, dataset)
    assert "\n" not in str(caught.value)


def test_a_model_of_no_name_is_refused():
    with pytest.raises(UserError, match=r"^--model must be one of cnn, .*; got 'mpl'$"):
        make_config(model="mpl")


def test_timm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = r"^--model timm:resnet18: timm cannot be imported \(.*\); pip install timm$"
    with pytest.raises(MissingLibrary, match=message):
        loop.Training(make_config(model="timm:resnet18"), toy_data())


def test_timm_makes_the_model(monkeypatch):
    asked = []

    class Timm:
        @staticmethod
        def create_model(name, **options):
            asked.append((name, options))
            if name == "unknown":
                raise RuntimeError("Unknown model (unknown)")
            if "img_size" in options and name == "any-size":
                raise TypeError("img_size")
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))

    monkeypatch.setitem(sys.modules, "timm", Timm)
    for name in ("vit", "any-size"):
        model = models.build(f"timm:{name}", (8, 9, 1), 3, seed=0)
        assert isinstance(model, torch.nn.Sequential)
    expected = {"num_classes": 3, "in_chans": 1}
    assert asked[0] == ("vit", {**expected, "img_size": (8, 9)})
    assert asked[-1] == ("any-size", expected)
    with pytest.raises(UserError, match=r"^--model timm:unknown: Unknown model \(unknown\)$"):
        models.build("timm:unknown", (8, 9, 1), 3, seed=0)
    table = make_config(data="/nowhere", model="timm:vit", flip=False)
    values = torch.randn(20, 5)
    labels = torch.arange(20) % 2
    with pytest.raises(UserError, match="--model timm:vit does not fit"):
        loop.Training(table, data.FloatData(values, labels, values, labels, ("a", "b"), "toy"))


# --- weights ----------------------------------------------------------------------------------


def test_weights_fit_by_name_and_size(tmp_path):
    source, other = (models.build("cnn", (6, 6, 1), n, seed=n) for n in (3, 5))
    path = str(tmp_path / "a.safetensors")
    tensors = {**source.state_dict(), "more": torch.ones(2), "cpfast.input.mean": torch.ones(1)}
    safetensors.torch.save_file(tensors, path)
    head = other.head.weight.detach().clone()
    told = weights.load(other, path)
    assert torch.equal(other.conv1.weight, source.conv1.weight)
    assert torch.equal(other.norm4.running_var, source.norm4.running_var)
    assert torch.equal(other.head.weight, head)
    count = len(source.state_dict())
    assert told == (
        f"{count - 2} of {count} tensors from {path}; of another size, left new: head.weight, "
        "head.bias; not in the model: more"
    )


def test_weights_that_are_refused(tmp_path):
    model = models.build("cnn", (6, 6, 1), 3, seed=0)
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"other": torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"nothing in it fits the model, which has .* has other"):
        weights.load(model, str(path))
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no safetensors file"):
        weights.load(model, str(path))
    with pytest.raises(UserError, match=r"^--weights .*/b\.safetensors: no such file$"):
        make_config(weights="b.safetensors")


def test_a_run_begins_with_them_and_resumes_without_the_file(tmp_path):
    first = start(tmp_path / "first", make_config(epochs=2))
    run.train(make_config(epochs=2), toy_data(), first)
    path = first.path / "model.safetensors"
    config = make_config(weights=str(path), epochs=2)
    begun = loop.Training(config, toy_data())
    kept = safetensors.torch.load_file(path)
    assert all(torch.equal(v, kept[k]) for k, v in begun.model.state_dict().items())
    assert begun.rotation.update().abs().max() == 0  # it is measured from there
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, toy_data(), whole)
    run.train(config, toy_data(), parts, epochs=1)
    path.unlink()
    run.train(config, toy_data(), parts)
    assert_same_checkpoint(whole, parts)


def test_arrays_of_a_function_are_the_same_as_of_a_file(mine, tmp_path):
    made = data.load(f"{mine}:series")
    x = np.random.default_rng(0).normal(size=(12, 2, 20))
    labels = np.arange(12) % 3
    np.savez(tmp_path / "a.npz", x_train=x, y_train=labels, x_test=x[:5], y_test=labels[:5])
    assert data.load(str(tmp_path / "a.npz")).fingerprint() == made.fingerprint()
