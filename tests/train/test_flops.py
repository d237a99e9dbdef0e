"""What a sample costs, against counts by hand, and what an epoch says of it."""

import random
import sys

import numpy as np
import pytest
import torch
from support.toy_training import (
    make_config,
    start,
    toy_data,
    toy_text,
    without_times,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cpfast.recipes import StepShape
from cpfast.studies import store
from cpfast.train import batches, data, flops, last_layer, loop, models, report, run

pytestmark = pytest.mark.usefixtures("one_thread")

# inputs, kernel, filters, and places of each convolution of `cnn` on digits of 8 x 8
CONVOLUTIONS = [(1, 9, 16, 64), (16, 9, 32, 64), (32, 9, 64, 16), (64, 9, 64, 4)]
FORWARD = [*(2 * c * k * f * n for c, k, f, n in CONVOLUTIONS), 2 * 256 * 10]
FREEZE = '[[actions]]\naction = "freeze"\nbelow = 0.9\nepochs = 1\n'
RESOLUTION = '[[actions]]\naction = "resolution"\nshare = 0.5\nwindow = { phase = "after" }\n'


def step_of(layers, frozen=0):
    """Of layers of so many FLOPs forward, the gradients of whose inputs are asked for but of the
    first that is trained."""
    return sum(layers) + layers[frozen] + 2 * sum(layers[frozen + 1 :])


class Draws(nn.Module):
    """Dropout, and a layer that is left out at random."""

    def __init__(self, features, outputs):
        super().__init__()
        self.head, self.extra = nn.Linear(features, outputs), nn.Linear(features, features)

    def forward(self, x):
        x = nn.functional.dropout(x.flatten(1), 0.5, self.training)
        is_in = torch.rand(()).item() + random.random() + np.random.rand() < 1.5
        return self.head(self.extra(x) if is_in else x)


class ReadsValues(nn.Module):
    """Which the meta device has not."""

    def __init__(self, features, outputs):
        super().__init__()
        self.head = nn.Linear(features, outputs)

    def forward(self, x):
        return self.head(x.flatten(1) * x.abs().max().item())


def toy_table():
    rows, labels = torch.randn(6, 7), torch.arange(6) % 3
    return data.FloatData(rows, labels, rows, labels, ("a", "b", "c"), "toy")


def draws(shape, outputs):
    return Draws(int(np.prod(shape)), outputs)


def reads_values(shape, outputs):
    return ReadsValues(int(np.prod(shape)), outputs)


@pytest.fixture
def own(monkeypatch):
    """This module, by which --model names its functions."""
    monkeypatch.setitem(sys.modules, "of_flops", sys.modules[__name__])
    return "of_flops"


def test_cnn_on_digits_by_hand():
    config = make_config(data="digits")
    training = loop.Training(config, data.load("digits"))
    assert training.flops.of(StepShape()) == (step_of(FORWARD), sum(FORWARD))


@pytest.mark.parametrize("frozen", [1, 2, 3, 4])
def test_frozen_layers_cost_their_forward_pass_alone(frozen):
    training = loop.Training(make_config(data="digits"), data.load("digits"))
    training.freeze(frozen)
    cost = training.flops.of(StepShape(frozen=frozen))
    assert cost == (step_of(FORWARD, frozen), sum(FORWARD))
    training.freeze(0)
    assert training.flops.of(StepShape()).step == step_of(FORWARD)
    assert training.flops.of(StepShape(frozen=frozen)) is cost  # measured once


def test_half_the_resolution_is_a_quarter_of_the_convolutions():
    training = loop.Training(make_config(), toy_data(side=16))
    whole, half = (training.flops.of(StepShape(resolution=share)) for share in (1.0, 0.5))
    head = 2 * 256 * 3
    assert half.forward - head == (whole.forward - head) / 4
    assert half.step - 3 * head == (whole.step - 3 * head) / 4
    same = StepShape(batch=4, mixing="mixup", augment=0.5, weight_decay=0.0)
    assert training.flops.of(same) is whole


@pytest.mark.parametrize("together", [False, True])
def test_a_transformer_by_its_formula(monkeypatch, together):
    monkeypatch.setattr(last_layer, "pays", lambda *_: together)
    config = make_config(data="python-docs", model="transformer")
    training = loop.Training(config, toy_text())
    assert (training.hidden is not None) == together
    for share, tokens in ((1.0, 8), (0.5, 4)):
        # a block's four dense layers are 12 matrices of 192 x 192, and its attention two products
        block = 2 * tokens * 12 * 192**2 + 2 * 2 * tokens**2 * 192
        forward = 4 * block + 2 * tokens * 192 * 5
        assert training.flops.of(StepShape(length=share)) == (3 * forward, forward)


@pytest.mark.parametrize("kind", ["images", "text", "table"])
def test_shapes_are_those_of_what_a_step_reads(kind):
    config, some = make_config(), torch.arange(2)
    found = {"images": toy_data(side=9), "text": toy_text(), "table": toy_table()}[kind]
    read = batches.of(config, found)
    for shape in (StepShape(), StepShape(resolution=0.4, length=0.3)):
        inputs, _ = read.train(some, some, shape)
        assert read.shapes(shape).shape == inputs.shape
        assert read.shapes(shape).dtype == inputs.dtype and read.shapes(shape).is_meta


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet8", (32, 32, 3)), ("vit-tiny", (32, 32, 3)), ("mlp", (7,)), ("resnet1d", (2, 50))],
)
def test_the_count_is_that_of_torch(name, shape):
    model = models.build(name, shape, 10, 0)
    channels_first = shape if len(shape) < 3 else (3, 32, 32)
    inputs = torch.empty(2, *channels_first, device="meta")
    cost = flops.FlopCounter(model, lambda _: inputs).of(StepShape())
    with FlopCounterMode(display=False) as counter:
        outputs = model.to("meta")(inputs)
        forward = counter.get_total_flops()
        outputs.sum().backward()
    assert cost == (counter.get_total_flops() / 2, forward / 2)


def test_depthwise_convolutions_and_transposed_ones_by_hand():
    layers = [
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 4, 2, 2)
    ]  # fmt: skip
    by_hand = [2 * 3 * 8 * 25, 2 * 9 * 8 * 25, 2 * 8 * 4 * 4 * 25]
    model = nn.Sequential(*layers, nn.BatchNorm2d(4, affine=False))
    counter = flops.FlopCounter(model, lambda _: torch.empty(2, 3, 5, 5, device="meta"))
    assert counter.of(StepShape()) == (step_of(by_hand), sum(by_hand))


@pytest.mark.parametrize("policy", ["selective_backprop", "kakurenbo"])
def test_an_epoch_is_what_its_samples_cost(policy):
    recipe = RESOLUTION + '[[actions]]\naction = "prune"\n'
    config = make_config(method="mine", policy=policy, recipe_text=recipe)
    training, lines = loop.Training(config, toy_data(side=12)), []
    for _ in range(config.epochs):
        lines.append(loop.train_epoch(training))
    assert sum(line["scored_samples"] for line in lines) > 0
    assert {line["settings"]["resolution"] for line in lines} == {0.5, 1}
    for line in lines:
        cost = training.flops.of(StepShape(resolution=line["settings"]["resolution"]))
        expected = line["backward_samples"] * cost.step + line["scored_samples"] * cost.forward
        assert line["flops"] == expected > 0 and line["measured_flops"] == 0


def test_what_criteria_measure_goes_forward_and_backward_as_the_data_are():
    config = make_config(method="mine", criterion="fisher", at=None, recipe_text=RESOLUTION.replace(
        'window = { phase = "after" }', ""))  # fmt: skip
    training = loop.Training(config, toy_data(side=12))
    line = loop.train_epoch(training)
    whole, half = (training.flops.of(StepShape(resolution=share)).step for share in (1.0, 0.5))
    assert line["measured_flops"] == line["measured_samples"] * whole > 0
    assert line["flops"] == line["backward_samples"] * half + line["measured_flops"]


def test_frozen_epochs_cost_less_and_a_resumed_run_says_the_same(tmp_path):
    config = make_config(method="mine", epochs=5, recipe_text=FREEZE)
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, toy_data(), whole)
    for epochs in (1, 3, None):
        run.train(config, toy_data(), parts, epochs=epochs)
    assert without_times(whole.metrics()) == without_times(parts.metrics())
    lines = whole.metrics()
    assert lines[0]["settings"]["frozen"] == 0 < lines[-1]["settings"]["frozen"]
    of_one = [line["flops"] / line["backward_samples"] for line in lines]
    assert of_one[-1] < of_one[0]
    flops_of = report.summarise(whole)["flops"]
    assert flops_of == report.summarise(parts)["flops"] == sum(line["flops"] for line in lines)
    assert report.flops_text(flops_of) in report.run_table(report.summarise(whole))
    assert report.document(report.summarise(whole))["flops"] == flops_of


@pytest.mark.parametrize("model", ["cnn", "draws"])
def test_counting_changes_no_bit_of_the_training(tmp_path, monkeypatch, own, model):
    config = make_config(epochs=2, model="cnn" if model == "cnn" else f"{own}:{model}")
    folders = []
    for is_counted in (True, False):
        if not is_counted:
            monkeypatch.setattr(flops.FlopCounter, "of", lambda *_: None)
        for module in (random, np.random, torch.random):
            (module.manual_seed if module is torch.random else module.seed)(5)
        folders.append(start(tmp_path / str(is_counted), config))
        run.train(config, toy_data(), folders[-1])
    states = [folder.checkpoint() for folder in folders]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    counted, uncounted = (
        [{**line, "flops": None, "measured_flops": None} for line in without_times(f.metrics())]
        for f in folders
    )
    assert counted == uncounted and folders[0].metrics()[0]["flops"] > 0


def test_no_random_state_is_touched_and_draws_are_the_same_each_time(own):
    training = loop.Training(make_config(model=f"{own}:draws"), toy_data())
    training.model.eval()
    found = set()
    for seed in range(5):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
        found.add(flops.FlopCounter(training.model, training.flops._inputs).of(StepShape()))
        after = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert len(found) == 1 and None not in found
    assert not training.model.training
    assert {p.device.type for p in training.model.parameters()} == {"cpu"}


def test_what_cannot_be_counted_is_unknown(tmp_path, own):
    config = make_config(epochs=2, model=f"{own}:reads_values", criterion="fisher", at=None)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder)
    for line in folder.metrics():
        assert line["flops"] is line["measured_flops"] is None and line["backward_samples"] > 0
    summary = report.summarise(folder)
    assert summary["flops"] is None and report.document(summary)["flops"] is None
    rows = report.run_table(summary).splitlines()
    assert [row.split() for row in rows if row.startswith("computation")] == [
        ["computation", "unknown"]
    ]
    assert store.entry_of(folder, 0, None)["flops"] is None


def test_a_study_counts_what_the_criteria_compute_where_it_is_charged(tmp_path):
    config = make_config(epochs=2, criterion="fisher", at=None)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder)
    lines = folder.metrics()
    measured = sum(line["measured_flops"] for line in lines)
    charged, not_charged = (store.entry_of(folder, 0, None, c)["flops"] for c in (True, False))
    assert charged == sum(line["flops"] for line in lines)
    assert not_charged == charged - measured > 0 < measured


@pytest.mark.parametrize(
    ("count", "text"),
    [(1.234e13, "1.2e13 FLOPs"), (9.96e5, "1.0e6 FLOPs"), (0.0, "0 FLOPs"), (None, "unknown")],
)
def test_flops_in_words(count, text):
    assert report.flops_text(count) == text
