"""The early phase: what is measured before each step, how weights are perturbed, stops."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support.toy_comparison import (
    check_picture,
    damage,
    draw,
    essence,
    made_up,
    make_config,
    metrics,
    run_with_stops,
    told,
    toy_data,
)

import cpfast
from cpfast import studies
from cpfast.studies import deficits, store
from cpfast.studies.early_phase import EarlyPhase, table
from cpfast.studies.early_phase.perturb import PERTURBATIONS, perturbed
from cpfast.studies.early_phase.pretrain import PRETRAININGS, head_of, turned
from cpfast.studies.early_phase.study import CHANGES
from cpfast.studies.early_phase.trace import NAMES, trace
from cpfast.train import loop
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
STEPS = 5


def make_plan(seeds=(0,), perturbations=("layer", "noise"), rewinds=(1, 2), iterations=STEPS):
    config = make_config(criterion="slope45", at=None, epochs=4, repeats=1, detect=False)
    return EarlyPhase(config, tuple(seeds), perturbations, rewinds, iterations)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("early")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


# --- the perturbations


def perturb(name, weight, seed=0):
    return PERTURBATIONS[name](weight, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 7)])
def test_what_a_perturbation_keeps(name, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    before, made = weight.clone(), perturb(name, weight)
    assert torch.equal(weight, before) and made.shape == weight.shape
    assert torch.equal(made, perturb(name, weight))
    assert not torch.equal(made, perturb(name, weight, 1)) and not torch.equal(made, weight)
    a, b = weight.numpy(), made.numpy()
    rows = [x.reshape(shape[0], -1) for x in (a, b)]
    keeps_filters = np.array_equal(*(np.sort(x, 1) for x in rows))
    assert keeps_filters == (name == "filter")
    assert np.array_equal(*(np.sort(x, None) for x in (a, b))) == (name in ("layer", "filter"))
    assert np.array_equal(np.sign(a), np.sign(b)) == (name == "magnitudes")
    if name == "magnitudes":
        assert np.array_equal(np.sort(abs(a), None), np.sort(abs(b), None))
    if name == "noise":
        added = perturb(name, torch.randn(100, 100)) - torch.randn(100, 100)
        assert added.std() == pytest.approx(3**0.5, rel=0.05)  # of three draws of deviation 1


def test_weights_of_layers_alone_are_perturbed(finished):
    state = RunFolder(finished[0] / "seed0/none").checkpoint()
    weights = ["conv1.weight", "head.weight"]
    changed = perturbed(state, "layer", weights, 0)
    for name, value in state["model"].items():
        assert torch.equal(value, changed["model"][name]) == (name not in weights), name
    assert all(changed[key] is value for key, value in state.items() if key != "model")


# --- what stands in for the first epochs


def test_images_are_turned_by_what_their_class_says():
    data = toy_data()
    made = turned(data, 3)
    assert made.classes == ("0", "90", "180", "270") and made.outputs == 4
    for split in ("train", "test"):
        before, after = (getattr(one, f"{split}_images").numpy() for one in (data, made))
        labels = getattr(made, f"{split}_labels").tolist()
        assert len(set(labels)) == 4
        for image, turned_, label in zip(before, after, labels, strict=True):
            assert np.array_equal(turned_, np.rot90(image, label))
    again, other = turned(data, 3), turned(data, 4)
    assert torch.equal(made.train_images, again.train_images)
    assert not torch.equal(made.train_labels, other.train_labels)
    both = PRETRAININGS["blur+rotation"].shown(data, 3)
    assert torch.equal(both.train_images, turned(deficits.blur(data, 3), 3).train_images)


def test_turned_images_must_be_square(tmp_path):
    data = toy_data()
    wide = dataclasses.replace(
        data, train_images=data.train_images[:, :4], test_images=data.test_images[:, :4]
    )
    plan = make_plan(perturbations=("layer", "rotation"))
    with pytest.raises(UserError, match="--perturbations rotation: images must be square, got 4x6"):
        studies.run(plan, wide, tmp_path)
    assert not (tmp_path / "seed0").exists()


def test_turned_images_are_not_mirrored():
    config = make_plan().config.replace(flip=True)
    flips = {name: task.configured(config).flip for name, task in PRETRAININGS.items()}
    assert flips == {"blur": True, "rotation": False, "blur+rotation": False}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pretrained")
    return out, studies.run(pretraining_plan(), toy_data(), out)


def pretraining_plan(**options):
    return make_plan(perturbations=("initial", "blur", "rotation"), **options)


def trained_on(data, config, epochs):
    training = Training(config, data)
    for _ in range(epochs):
        loop.train_epoch(training)
    return training.model.state_dict()


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("name", ["initial", "blur", "rotation"])
def test_they_go_on_from_the_weights_of_the_other_task(pretrained, name, epoch):
    """What the run came to is what by hand comes of the undisturbed run's state after as many
    epochs with these weights, and no momentum."""
    config, data = make_plan().config, toy_data()
    weights = Training(config, data).model.state_dict()
    head = {"head.weight", "head.bias"}
    assert head_of(config, data) == head
    if name == "blur":
        weights = trained_on(deficits.blur(data, 0), config, epoch)
    elif name == "rotation":
        found = trained_on(turned(data, 0), config, epoch)
        weights = {key: weights[key] if key in head else found[key] for key in weights}
    training = Training(config, data)
    for number in range(config.epochs):
        if number == epoch:
            training.model.load_state_dict(weights)
            for state in training.optimizer.state.values():
                state["momentum_buffer"].zero_()
        loop.train_epoch(training)
    end = RunFolder(pretrained[0] / "seed0" / f"{name}-{epoch}").checkpoint()["model"]
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, end[key]), key


def test_a_stop_in_a_pretraining_loses_nothing(pretrained, tmp_path):
    results, stops = run_with_stops(pretraining_plan(), tmp_path)
    assert stops == len(results["runs"]) == pretraining_plan().wanted({})
    assert essence(results) == essence(pretrained[1])


def test_a_pretraining_that_diverges_is_said_to(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if training.epoch == 1 and training.data.outputs == 4:
            raise Diverged("training diverged: epoch 2")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    runs = studies.run(make_plan(perturbations=("rotation",)), toy_data(), tmp_path)["runs"]
    assert [(e["perturbation"], e["epoch"], e["diverged"]) for e in runs] == [
        ("none", 0, None), ("rotation", 1, None),
        ("rotation", 2, "not run: its pre-training diverged before epoch 2"),
    ]  # fmt: skip


# --- the runs


def test_each_perturbation_once_and_one_undisturbed(finished):
    out, results = finished
    keys = [(e["seed"], e["perturbation"], e["epoch"]) for e in results["runs"]]
    expected = [("none", 0), *((name, epoch) for name in ("layer", "noise") for epoch in (1, 2))]
    assert keys == [(seed, *key) for seed in (0, 1) for key in expected]
    assert len(keys) == make_plan((0, 1)).wanted({})
    for name, epoch in expected[1:]:
        lines, none = (metrics(out / "seed0" / n) for n in (f"{name}-{epoch}", "none"))
        assert lines[:epoch] == none[:epoch] and lines[epoch] != none[epoch]
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


def test_the_trace_is_what_numpy_measures_before_each_step(finished):
    out, results = finished
    config = make_plan().config
    end = RunFolder(out / "seed0/none").checkpoint()["model"]
    training = Training(config, toy_data())
    names = list(cpfast.LayerRotation(training.model).names)

    def weights():
        return [training.model.get_parameter(name).detach().numpy().copy() for name in names]

    start, last = weights(), [end[name].numpy() for name in names]
    seen = []

    def watch(*_):
        seen.append((weights(), [training.model.get_parameter(n).grad.norm() for n in names]))

    training.optimizer.register_step_pre_hook(watch)
    loop.train_epoch(training)
    loop.train_epoch(training)

    def cosine(a, b):
        return 1 - np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))

    def flat(arrays):
        return np.concatenate([a.ravel() for a in arrays]).astype(np.float64)

    found = results["runs"][0]["trace"]
    assert set(found) == set(NAMES) and all(len(column) == STEPS for column in found.values())
    for step in range(STEPS):
        now, gradients = seen[step]
        expected = {
            "magnitude": abs(flat(now)).mean(),
            "sign_changes": (flat(now) * flat(start) < 0).mean(),
            "gradient_norm": float(torch.stack(gradients).norm()),
            "l2_from_start": np.linalg.norm(flat(now) - flat(start)),
            "l2_to_end": np.linalg.norm(flat(now) - flat(last)),
            "cosine_from_start": np.mean([cosine(a, b) for a, b in zip(now, start, strict=True)]),
            "cosine_to_end": np.mean([cosine(a, b) for a, b in zip(now, last, strict=True)]),
        }
        for name, value in expected.items():
            assert found[name][step] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, step)
    # of the test data, by the statistics of the batch they make
    training = Training(config, toy_data())
    training.model.train()
    images, labels = training.batches.test(torch.arange(30))
    logits = training.model(images)
    assert found["loss"][0] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4
    )
    assert found["accuracy"][0] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_looking_changes_nothing(finished):
    """The traced beginning is that of the run, and ends where the run ends."""
    out, _ = finished
    end = RunFolder(out / "seed0/none").checkpoint()["model"]
    found = trace(make_plan().config, toy_data(), end, 12)
    assert len(found["loss"]) == 12  # all steps of the run
    assert found["l2_to_end"][-1] > 0
    again = trace(make_plan().config, toy_data(), end, 100)
    assert again == found  # and no more than there are


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


@pytest.mark.needs("matplotlib")
def test_a_run_that_diverges_keeps_what_began_before(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if training.epoch == 1:
            raise Diverged("training diverged: epoch 2")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = studies.run(make_plan(perturbations=("layer",)), toy_data(), tmp_path)
    assert [(e["epoch"], e["diverged"]) for e in results["runs"]] == [
        (0, "training diverged: epoch 2"), (1, "training diverged: epoch 2"),
        (2, "not run: the undisturbed run diverged before epoch 2"),
    ]  # fmt: skip
    assert studies.read_results(tmp_path) == results
    assert "layer after epoch 2, seed 0: not run" in told(results)
    draw(results, "early-phase.png", tmp_path / "early-phase.png")


@pytest.mark.parametrize("key", ["rewinds", "iterations", "perturbation", "trace", *store.ENTRY])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


@pytest.mark.parametrize(
    "change", [{"trace": None}, {"trace": {"loss": [1.0]}}, {"epoch": 1}, {"perturbation": "zero"}]
)
def test_an_entry_that_is_none_of_the_study_is_named(finished, tmp_path, change):
    entry = {**finished[1]["runs"][0], **change}
    (tmp_path / "results.json").write_text(json.dumps({**finished[1], "runs": [entry]}))
    with pytest.raises(UserError, match=r"damaged .entry 1 of 'runs'"):
        studies.read_results(tmp_path)


# --- what is concluded


@pytest.mark.needs("scipy")
def test_the_cost_is_paired_with_the_undisturbed_run():
    values = {("none", 0): [0.90, 0.92, 0.94], ("layer", 1): [0.90, 0.91, 0.95],
              ("layer", 2): [0.70, 0.73, 0.76]}  # fmt: skip
    runs = [
        ({"perturbation": name, "epoch": epoch, "seed": seed, "trace": None}, value)
        for (name, epoch), accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    made = made_up(make_plan((0, 1, 2), ("layer",)), runs)
    # -20, -19, -18: t(0.975; 2) = 4.3027, of a deviation of 1
    assert table.cost(made, "layer", 2) == pytest.approx((-19.0, 4.3027 / 3**0.5), rel=1e-4)
    text = told(made)
    assert (
        "in the layer after epoch 2, against the undisturbed run: -19.00 ± 2.48 points (seen)"
        in text
    )
    assert "in the layer after epoch 1, against the undisturbed run: " in text
    assert "± 2.48 points (not seen, for the interval contains 0)" in text


@pytest.mark.needs("scipy")
def test_pretraining_is_held_against_no_first_epochs_too():
    values = {("none", 0): [0.90, 0.92, 0.94], ("initial", 1): [0.80, 0.81, 0.82],
              ("blur", 1): [0.85, 0.86, 0.88]}  # fmt: skip
    runs = [
        ({"perturbation": name, "epoch": epoch, "seed": seed, "trace": None}, value)
        for (name, epoch), accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    made = made_up(make_plan((0, 1, 2), ("initial", "blur"), (1,)), runs)
    # 5, 5, 6
    expected = (16 / 3, 4.3027 * (1 / 3) ** 0.5 / 3**0.5)
    assert table.cost(made, "blur", 1, "initial") == pytest.approx(expected, rel=1e-4)
    text = told(made)
    assert "blurred images in their place after epoch 1, against the initial ones: +5.33" in text
    assert "The initial weights in their place after epoch 1, against the undisturbed run" in text


@pytest.mark.needs("matplotlib")
def test_more_perturbations_than_colours_are_drawn(tmp_path):
    plan = make_plan((0,), CHANGES)
    runs = [({"perturbation": "none", "epoch": 0, "seed": 0, "trace": None}, 0.9)]
    runs += [({"perturbation": name, "epoch": epoch, "seed": 0, "trace": None}, 0.8)
             for name in CHANGES for epoch in (1, 2)]  # fmt: skip
    draw(made_up(plan, runs), "early-phase.png", tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 10_000


@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "early-phase.png", tmp_path / "all.png")
    check_picture(tmp_path / "all.png", "#D55E00", "#0072B2", "#000000")
    draw({**finished[1], "runs": finished[1]["runs"][1:2]}, "early-phase.png", tmp_path / "p.png")
