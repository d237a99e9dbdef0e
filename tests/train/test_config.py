"""Settings: defaults by data set, what is refused, what may differ on resume."""

import os
from pathlib import Path

import pytest

from cpfast.train.config import Config, differences
from cpfast.train.errors import UserError


def test_digits_defaults():
    config = Config.from_options({})
    assert (config.data, config.model, config.method) == ("digits", "cnn", "detector+prune")
    assert (config.epochs, config.repeats, config.flip, config.threads) == (120, 3, False, 1)


def test_other_data_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.from_options({"data": "images", "batch_size": 256, "lr": None})
    assert config.data == str(tmp_path / "images")
    assert (config.model, config.flip) == ("resnet20", True)
    assert config.threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert config.lr == pytest.approx(0.08)
    assert Config.from_options({"data": "images", "device": "cuda:0"}).threads is None


def test_mnist_by_path_is_not_mirrored(tmp_path):
    def flip(**options):
        return Config.from_options(options).flip

    images = tmp_path / "emnist-letters-train-images-idx3-ubyte.gz"
    images.write_bytes(b"")
    assert not flip(data=str(tmp_path)) and not flip(data=str(images))
    assert not flip(data=str(tmp_path.parent)) and flip(data=str(tmp_path / "nothing"))
    assert flip(data=str(tmp_path), flip=True)
    assert not flip(data="mnist") and flip(data="fashion-mnist")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1, got -1"),
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"repeats": 10**10}, "--repeats must be at most 1,000,000,000, got 10000000000"),
        ({"threads": 5000}, "--threads must be in 1 .. 1024, got 5000"),
        ({"threads": 0}, "--threads must be in 1 .. 1024, got 0"),
        ({"data": "~nobody-of-this-name/x"}, "--data ~nobody-of-this-name/x: "),
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"lr": 0.0}, "--lr must be finite and positive, got 0.0"),
        ({"lr": float("nan")}, "--lr must be finite and positive, got nan"),
        ({"weight_decay": -1e-4}, "--weight-decay must be finite and not negative, got -0.0001"),
        ({"keep": 0.0}, r"--keep must be in \(0, 1\], got 0.0"),
        ({"keep": 1.5}, r"--keep must be in \(0, 1\], got 1.5"),
        ({"anneal": 1.1}, r"--anneal must be in \[0, 1\], got 1.1"),
        ({"seed": -1}, "--seed must be in .* got -1"),
        ({"criterion": "fixed"}, "--criterion fixed needs --at EPOCH"),
        ({"criterion": "fixed", "at": 121}, r"--at must be in 1 .. 120 .* got 121"),
        ({"at": 3}, "--at goes with --criterion fixed"),
        ({"model": "vgg"}, "--model must be one of .*; got 'vgg'"),
        ({"optimizer": "lion"}, "--optimizer must be one of .*; got 'lion'"),
        ({"labels": "wrong"}, "--labels must be one of .*; got 'wrong'"),
        ({"step": "graph"}, "--step graph needs a CUDA device"),
        ({"data": "python-docs", "model": "cnn"}, "--model cnn does not fit --data python-docs"),
        ({"model": "transformer"}, "--model transformer does not fit --data digits"),
        ({"price_hour": -1.0}, "--price-hour must be finite and not negative, got -1.0"),
        ({"precision": "fp16"}, "--precision fp16 needs a CUDA device"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        Config.from_options(options)


def test_dict_round_trip_and_foreign_dicts():
    config = Config.from_options({"criterion": "fixed", "at": 3})
    source = Path("config.json")
    assert Config.from_dict(config.to_dict(), source) == config
    with pytest.raises(UserError, match=r"config.json: not a configuration of this version"):
        Config.from_dict({**config.to_dict(), "colour": "red"}, source)
    for name, value in (
        ("epochs", "many"), ("epochs", None), ("epochs", 2.5), ("data", 5), ("flip", "yes"),
        ("batch_size", True), ("limit", "all"),
    ):  # fmt: skip
        message = rf"config.json: a setting has the wrong type \({name}: {value!r}, expected"
        with pytest.raises(UserError, match=message):
            Config.from_dict({**config.to_dict(), name: value}, source)
    assert Config.from_dict({**config.to_dict(), "lr": 1}, source).lr == 1


def test_differences_name_option_and_both_values():
    stored = Config.from_options({})
    assert differences({"epochs": 9, "keep": None}, stored) == ["--epochs 9 (the run has 120)"]
    assert differences({"epochs": 120, "device": "cuda", "threads": 2}, stored) == []
