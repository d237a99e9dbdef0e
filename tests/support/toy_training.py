"""A toy run of the training loop, and what two runs are compared by."""

import json
import math

import torch
from torch import nn

import cpfast
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.runfolder import RunFolder

CLASSES = 3
TRAIN = 30


def toy_data(seed=0, side=6):
    """Three classes told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(seed)

    def make(count):
        labels = torch.arange(count) % CLASSES
        images = torch.randint(
            0, 90, (count, side, side, 1), generator=generator, dtype=torch.uint8
        )
        for label in range(CLASSES):
            images[labels == label, 2 * label : 2 * label + 2] += 120
        return images, labels

    return ImageData(*make(TRAIN), *make(15), ("a", "b", "c"), "toy")


def toy_text():
    """Sequences that count on, from anywhere, in a circle of five characters."""

    def make(count):
        return ((torch.arange(count)[:, None] + torch.arange(9)) % 5).to(torch.uint8)

    return TextData(make(TRAIN), make(10), "abcde", "toy")


def toy_run(method, **options):
    """Settings of a named recipe, and data that it goes with."""
    possible = cpfast.Recipe.named(method, 8).possible()
    if any(settings.length < 1 for settings in possible):
        return make_config(
            method=method, data="python-docs", model="transformer", repeats=3, **options
        ), toy_text()
    is_small = any(settings.resolution < 1 for settings in possible)
    return make_config(method=method, **options), toy_data(side=12 if is_small else 6)


def plain_network(shape, outputs):
    """Without normalisation by batches: `--model support.toy_training:plain_network`."""
    features = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, outputs))


def make_config(**options):
    base = {
        "epochs": 6, "batch_size": 8, "model": "cnn", "method": "full", "lr": 0.05,
        "criterion": "fixed", "at": 2, "energy": False,
    }  # fmt: skip
    return Config.from_options({**base, **options})


def start(path, config):
    folder = RunFolder(path)
    folder.create(config)
    return folder


def assert_same(a, b, where="state"):
    """Equal to the bit, whatever is nested."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where  # NaN, where nothing was measured


def assert_same_checkpoint(a, b):
    """Equal to the bit, but for the times in the lines of metrics."""
    states = [folder.checkpoint() for folder in (a, b)]
    lines = [[json.loads(line) for line in state.pop("metrics")] for state in states]
    assert_same(*states)
    assert without_times(lines[0]) == without_times(lines[1])


def without_times(lines):
    def without(line):
        return {
            key: without(value) if isinstance(value, dict) else value
            for key, value in line.items()
            if key != "seconds"
        }

    return [without(line) for line in lines]
