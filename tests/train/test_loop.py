"""The loop: what each method spends, resume to the bit, forks, text, compiled steps."""

import dataclasses
import gc
import math
import random
import weakref

import numpy as np
import pytest
import torch
from support.toy_training import (
    TRAIN,
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    toy_run,
    toy_text,
    without_times,
)

from cpfast import ops
from cpfast.pruning import policies
from cpfast.recipes import Augment, EpochSettings, StepShape, WeightDecay, Window, recipes
from cpfast.train import checks, last_layer, loop, report, run
from cpfast.train.config import Config
from cpfast.train.energy import EnergyMeter
from cpfast.train.errors import Diverged, UserError
from cpfast.train.ranks import Ranks
from cpfast.train.runfolder import Fork, RunFolder
from cpfast.train.step import WARM_UP

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("method", recipes)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resume_equals_no_stop_to_the_bit(tmp_path, method, stop):
    config, data = toy_run(method)
    whole = start(tmp_path / "whole", config)
    run.train(config, data, whole)
    parts = start(tmp_path / "parts", config)
    run.train(config, data, parts, epochs=stop)
    assert parts.checkpoint()["epoch"] == stop
    run.train(config, data, parts)
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())


@pytest.mark.parametrize("policy", policies)
def test_every_policy_trains_and_resumes_to_the_bit(tmp_path, policy):
    options = {"epochs": 9, "method": "prune", "policy": policy, "repeats": 1, "anneal": 1.0}
    config, data = make_config(**options), toy_data()
    if policies.make(policy).needs_tokens:
        config, data = text_config(**options), toy_text()
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, data, whole)
    run.train(config, data, parts, epochs=7)
    run.train(config, data, parts)
    assert_same_checkpoint(whole, parts)
    lines = whole.metrics()
    for line in lines:
        assert line["forward_samples"] == line["backward_samples"] + line["scored_samples"]
    if policy in ("kakurenbo", "ies", "pdd", "selective_backprop"):
        assert sum(line["scored_samples"] for line in lines) > 0


def test_a_policy_that_does_not_go_with_the_run_is_named_before_it():
    with pytest.raises(UserError, match="^--policy rcap looks at classes, and .* has none$"):
        checks.check(text_config(policy="rcap"), toy_text(), Ranks())
    with pytest.raises(UserError, match="^--policy tokens selects among the tokens of text, and "):
        checks.check(make_config(policy="tokens"), toy_data(), Ranks())
    config = make_config(policy="selective_backprop", batch_size=1)
    with pytest.raises(UserError, match="^--batch-size 1: too few for --policy selective_backprop"):
        checks.check(config, toy_data(), Ranks())


@pytest.mark.parametrize("options", [{"policy": "random"}, {"anneal": 0.5}, {"precision": "bf16"}])
def test_resume_with_other_settings(tmp_path, options):
    config, data = make_config(method="detector+prune", epochs=4, at=1, **options), toy_data()
    whole, parts = start(tmp_path / "whole", config), start(tmp_path / "parts", config)
    run.train(config, data, whole)
    for epochs in (1, 2, 3, 4):
        run.train(config, data, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)


def test_an_epoch_that_was_not_stored_is_done_again(tmp_path):
    config, data = make_config(epochs=3), toy_data()
    whole, parts = start(tmp_path / "whole", config), start(tmp_path / "parts", config)
    run.train(config, data, whole)
    run.train(config, data, parts, epochs=1)
    checkpoint = (parts.path / "last.pt").read_bytes()
    run.train(config, data, parts, epochs=2)
    # killed after the line of metrics, before the checkpoint
    (parts.path / "last.pt").write_bytes(checkpoint)
    run.train(config, data, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())
    assert_same_checkpoint(whole, parts)


def test_what_each_method_spends(tmp_path):
    spent = {}
    for method in recipes:
        config, data = toy_run(method, epochs=8, at=3)
        folder = start(tmp_path / method, config)
        run.train(config, data, folder)
        lines = folder.metrics()
        full = [line["full_samples"] for line in lines]
        k = config.passes
        assert k == (1 if method == "fast" else 3)
        assert sum(full) == k * TRAIN * 8 // 8 * 8  # whole batches
        if method == "full":  # has saved nothing, in no epoch
            assert full == [line["backward_samples"] for line in lines]
        assert [line["period_end"] for line in lines] == [None] * 2 + [3] * 6
        spent[method] = [
            (line["repeats"], line["prune"], line["planned_samples"]) for line in lines
        ]
    assert spent["full"] == [(3, False, 90)] * 8
    assert spent["fast"][:3] == [(1, False, 30)] * 3
    assert [s[1] for s in spent["fast"]] == [False] * 3 + [True] * 4 + [False]
    assert spent["detector"] == [(3, False, 90)] * 3 + [(1, False, 30)] * 5
    assert spent["prune"][0] == (3, True, 90)
    assert [s[:2] for s in spent["prune"]] == [(3, True)] * 7 + [(3, False)]
    assert spent["prune"][7][2] == 90  # annealed
    assert min(s[2] for s in spent["prune"]) < 90
    assert spent["detector+prune"][:3] == [(3, False, 90)] * 3
    after = [s[2] for s in spent["detector+prune"][3:]]
    assert min(after) < 30 and after[-1] == 30


@pytest.mark.parametrize("policy", ["kakurenbo", "selective_backprop", "infobatch"])
def test_forward_passes_that_only_score_are_counted_and_timed(tmp_path, policy):
    options = {"epochs": 8, "method": "prune", "policy": policy, "repeats": 1, "anneal": 1.0}
    folder = start(tmp_path / "run", make_config(**options, eval_every=8))
    run.train(folder.config(), toy_data(), folder)
    lines = folder.metrics()
    scored = [line["scored_samples"] for line in lines]
    assert [line["seconds"]["forwards"] > 0 for line in lines] == [n > 0 for n in scored]
    assert all(line["seconds"]["forwards"] < line["seconds"]["train"] for line in lines)
    assert (sum(scored) > 0) == (policy != "infobatch")
    text = report.run_table(report.summarise(folder))
    told = f"only scored        {sum(scored):,} samples more, in "
    assert (told in text) == (policy != "infobatch")


def test_every_arm_scores_and_times_its_parts():
    for method in recipes:
        training = loop.Training(*toy_run(method))
        seconds = loop.train_epoch(training)["seconds"]
        assert 0 < seconds["scoring"] < seconds["train"] and seconds["detection"] > 0
        assert seconds["scoring"] + seconds["selection"] + seconds["detection"] < seconds["train"]
        assert seconds["preparation"] == 0
        # of one pass, all but what is left over for the next epoch
        left_over = TRAIN % 8 if training.passes == 1 else 0
        assert training.pruner.scores.isinf().sum() == left_over
    training = loop.Training(make_config(repeats=1), toy_data())
    loop.train_epoch(training)
    assert training.pruner.scores.isinf().sum() == TRAIN % 8


def test_it_learns_and_reports_the_last_accuracy(tmp_path):
    config = make_config(epochs=8, eval_every=3, seed=1)
    folder = start(tmp_path / "run", config)
    training = run.train(config, toy_data(), folder)
    lines = folder.metrics()
    evaluated = [line["epoch"] for line in lines if line["test_accuracy"] is not None]
    assert evaluated == [3, 6, 8]
    assert (lines[-1]["test_loss"], lines[-1]["test_accuracy"]) == loop.evaluate(training)
    assert lines[-1]["test_accuracy"] == 1.0
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] / 2


def test_metrics_of_rotation(tmp_path):
    training = loop.Training(make_config(criterion="slope45", at=None), toy_data())
    before = {n: p.detach().clone() for n, p in training.model.named_parameters() if p.dim() > 1}
    line = loop.train_epoch(training)
    assert list(line["rotation"]) == list(before)
    for name, start_weight in before.items():
        w = training.model.get_parameter(name).detach().double().flatten()
        w0 = start_weight.double().flatten()
        assert line["rotation"][name] == pytest.approx(
            1 - (w @ w0 / (w.norm() * w0.norm())).item(), rel=1e-4
        )
    assert line["rotation_mean"] == pytest.approx(np.mean(list(line["rotation"].values())))
    assert line["slope"] is None
    for _ in range(4):
        line = loop.train_epoch(training)
    assert math.isfinite(line["slope"])


def batches_of(training, epochs, monkeypatch):
    """The (index, draw) of each batch that the epochs train on."""
    seen = []
    real = ops.augment_batch

    def augment_batch(images, index, **options):
        if "repeat" in options:  # else it evaluates
            seen.append((index.tolist(), options["repeat"].tolist()))
        return real(images, index, **options)

    monkeypatch.setattr(ops, "augment_batch", augment_batch)
    lines = [loop.train_epoch(training) for _ in range(epochs)]
    assert sum(line["forward_samples"] for line in lines) == sum(len(i) for i, _ in seen)
    return seen


def test_batches_are_of_one_size_and_lose_nothing_to_the_end_of_an_epoch(monkeypatch):
    training = loop.Training(make_config(repeats=2, batch_size=7), toy_data())
    seen = batches_of(training, 3, monkeypatch)
    assert {len(index) for index, _ in seen} == {7}
    assert len(seen) == 3 * 2 * TRAIN // 7
    drawn = [pair for index, draw in seen for pair in zip(draw, index, strict=True)]
    every = [(d, i) for d in range(6) for i in range(TRAIN)]
    left = training.stream.state_dict()
    left = list(zip(left["draw"].tolist(), left["index"].tolist(), strict=True))
    assert len(left) == 3 * 2 * TRAIN % 7
    assert sorted(drawn + left) == every
    # A pass and an epoch end within a batch, and the next draws begin there.
    assert any(len(set(draw)) == 2 for _, draw in seen)
    assert any(set(draw) == {1, 2} for _, draw in seen)


def test_a_sample_left_over_keeps_its_weight(monkeypatch):
    config = make_config(method="prune", repeats=1, batch_size=7, epochs=40)
    training = loop.Training(config, toy_data())
    training.pruner.update(torch.arange(TRAIN), torch.linspace(0, 1, TRAIN))
    training.epoch = 2
    loop.train_epoch(training)
    left = training.stream.state_dict()
    assert len(left["index"]) > 0 and torch.equal(
        left["weight"], training.pruner.weights(left["index"])
    )
    training.pruner.plan(3, prune=False)  # all of weight 1
    seen = []
    real = training.pruner.loss

    def loss(logits, target, index, weight, label_smoothing):
        seen.append((index, weight))
        return real(logits, target, index, weight=weight)

    monkeypatch.setattr(training.pruner, "loss", loss)
    loop.train_epoch(training)
    index, weight = (part[: len(left["index"])] for part in seen[0])
    assert torch.equal(index, left["index"]) and torch.equal(weight, left["weight"])


def test_an_epoch_of_fewer_samples_than_a_batch(tmp_path):
    # half of 20 samples, in batches of 16: an epoch with a step, one without
    config = make_config(
        method="prune", policy="random", keep=0.5, repeats=1, batch_size=16, epochs=4, anneal=1.0,
        criterion="slope45", at=None,
    )  # fmt: skip
    data = toy_data()
    data = dataclasses.replace(
        data, train_images=data.train_images[:20], train_labels=data.train_labels[:20]
    )
    folder = start(tmp_path / "run", config)
    training = run.train(config, data, folder)
    lines = folder.metrics()
    assert [line["forward_samples"] for line in lines] == [0, 16, 0, 16]
    assert [line["train_loss"] is None for line in lines] == [True, False, True, False]
    assert [epoch for epoch, _ in training.detector.history] == [2, 4]
    with pytest.raises(UserError, match="--batch-size 21: there are only 20 samples"):
        loop.Training(config.replace(batch_size=21), data)


@pytest.mark.slow
def test_a_compiled_step_does_what_an_eager_one_does():
    weights = {}
    for how in ("eager", "compile"):
        training = loop.Training(make_config(step=how, method="prune", ema=0.9), toy_data())
        step = training.step_of(EpochSettings(), None)
        assert step.ready == (how == "eager")
        training.stream.extend(torch.arange(16), torch.zeros(16).long(), torch.ones(16))
        for _ in range(2):
            step()
        both = (training.model, training.average.model())
        weights[how] = [p.detach() for model in both for p in model.parameters()]
        assert training.pruner.scores.isfinite().sum() == 16
    for eager, compiled in zip(weights["eager"], weights["compile"], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


def test_a_training_that_has_ended_leaves_no_memory_behind():
    training = loop.Training(make_config(), toy_data())
    loop.train_epoch(training)
    left = weakref.ref(training)
    gc.disable()
    try:
        del training
        assert left() is None
    finally:
        gc.enable()


def test_compiling_is_neither_time_nor_energy_of_the_training(tmp_path, monkeypatch):
    config = make_config(epochs=2, step="compile")
    folder, paused = start(tmp_path / "run", config), []
    real = EnergyMeter.paused
    monkeypatch.setattr(EnergyMeter, "paused", lambda meter: paused.append(1) or real(meter))
    run.train(config, toy_data(), folder)
    first, second = (line["seconds"] for line in folder.metrics())
    assert first["preparation"] > 0 and second["preparation"] == 0
    assert first["train"] > 0
    assert "and preparation" in report.run_table(report.summarise(folder))
    assert len(paused) == WARM_UP + 1


def test_weight_decay_is_on_kernels_only():
    training = loop.Training(make_config(weight_decay=0.01), toy_data())
    decay = {
        id(p): group["weight_decay"]
        for group in training.optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in training.model.named_parameters():
        assert decay[id(parameter)] == (0.01 if parameter.dim() > 1 else 0.0), name


def test_learning_rate_follows_the_fraction_of_training(tmp_path):
    config = make_config(epochs=4, lr=0.08, schedule="step")
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder)
    rates = [line["lr"] for line in folder.metrics()]
    assert rates == pytest.approx([0.08, 0.08, 0.008, 0.0008])


def test_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    config = make_config(method="detector+prune", epochs=2, at=1)
    run.train(config, toy_data(), start(tmp_path / "run", config))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_huge_learning_rate_diverges_with_a_clear_error(tmp_path):
    config = make_config(epochs=3, lr=1e30, method="detector+prune")
    with pytest.raises(Diverged, match=r"training diverged: .* of epoch 1 is"):
        run.train(config, toy_data(), start(tmp_path / "run", config))


@pytest.mark.parametrize("policy", ["infobatch", "random"])
def test_training_loss_estimates_that_of_all_samples(policy, monkeypatch):
    training = loop.Training(make_config(method="prune", policy=policy, repeats=2), toy_data())
    training.epoch = 2
    training.pruner.update(torch.arange(TRAIN), torch.linspace(0, 1, TRAIN))

    def constant(logits, labels, index, weight, label_smoothing):
        return 0 * logits.sum() + 2.0 * weight.mean()

    monkeypatch.setattr(training.pruner, "loss", constant)
    line = loop.train_epoch(training)
    assert line["planned_samples"] < 2 * TRAIN
    assert line["train_loss"] == pytest.approx(2.0)


def test_anneal_means_one_moment(tmp_path):
    # of the 8 epochs after the period's end, the last 4
    config = make_config(method="detector+prune", epochs=10, at=2, anneal=0.5)
    folder = start(tmp_path / "detector", config)
    run.train(config, toy_data(), folder)
    lines = folder.metrics()
    assert [(line["repeats"], line["prune"]) for line in lines] == (
        [(3, False)] * 2 + [(1, True)] * 4 + [(3, False)] * 4
    )
    assert lines[5]["planned_samples"] < TRAIN  # epoch 5 of 10: still pruned
    assert {line["planned_samples"] for line in lines[6:]} == {3 * TRAIN}
    # without a detector: the last 5 of 10
    config = make_config(method="prune", epochs=10, at=2, anneal=0.5)
    folder = start(tmp_path / "prune", config)
    run.train(config, toy_data(), folder)
    lines = folder.metrics()
    assert lines[4]["planned_samples"] < 3 * TRAIN
    assert {line["planned_samples"] for line in lines[5:]} == {3 * TRAIN}
    assert [line["prune"] for line in lines] == [True] * 5 + [False] * 5


def forks_at(epoch, into, config):
    def forks(training):
        wanted = training.epoch == epoch and not (into.path / "config.json").exists()
        return [(into, config)] if wanted else []

    return forks


def test_a_fork_continues_from_the_epoch_that_asked_for_it(tmp_path):
    config, data = make_config(epochs=4, at=2), toy_data()
    other = config.replace(method="detector")
    whole, fork = start(tmp_path / "run", config), RunFolder(tmp_path / "fork")
    run.train(config, data, whole, forks=forks_at(2, fork, other))
    assert fork.config() == other and fork.checkpoint()["epoch"] == 2
    assert fork.metrics() == whole.metrics()[:2]
    run.train(other, data, fork)
    scratch = start(tmp_path / "scratch", other)
    run.train(other, data, scratch)
    assert_same_checkpoint(fork, scratch)


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_fork_is_made_up_for_after_a_stop(tmp_path, epoch):
    config, data = make_config(epochs=4, at=2), toy_data()
    folder, fork = start(tmp_path / "run", config), RunFolder(tmp_path / "fork")
    run.train(config, data, folder, epochs=epoch)
    assert not fork.path.exists()
    run.train(config, data, folder, forks=forks_at(epoch, fork, config.replace(method="detector")))
    assert fork.checkpoint()["epoch"] == epoch


def test_a_fork_may_change_the_state_and_go_on_with_other_data(tmp_path):
    config, data = make_config(epochs=4, at=2), toy_data()
    other = dataclasses.replace(data, train_labels=data.train_labels.flip(0))
    whole, fork = start(tmp_path / "run", config), RunFolder(tmp_path / "fork")

    def change(state):
        model = {name: torch.zeros_like(value) for name, value in state["model"].items()}
        return {**state, "model": model, "data": other.fingerprint()}

    def forks(training):
        return [Fork(fork, config, change)] if training.epoch == 2 else []

    run.train(config, data, whole, forks=forks)
    assert not any(value.any() for value in fork.checkpoint()["model"].values())
    assert whole.checkpoint()["model"]["head.weight"].any()
    with pytest.raises(UserError, match="of other data"):
        run.train(config, data, fork)
    assert run.train(config, other, fork).epoch == 4


def test_weights_to_begin_with_are_set_once_and_rotations_are_from_them(tmp_path):
    config, data = make_config(epochs=3), toy_data()
    calls = []

    def begin(training):
        calls.append(training.epoch)
        with torch.no_grad():
            for parameter in training.model.parameters():
                parameter.neg_()

    folders = [start(tmp_path / name, config) for name in ("whole", "parts", "plain")]
    for folder in folders[:2]:
        run.train(config, data, folder, begin=begin, epochs=0)
    zero = folders[0].checkpoint()["model"]
    run.train(config, data, folders[0], begin=begin)
    run.train(config, data, folders[1], begin=begin, epochs=1)
    run.train(config, data, folders[1], begin=begin)
    assert calls == [0, 0]
    run.train(config, data, folders[2], epochs=0)
    plain = folders[2].checkpoint()["model"]
    for name, value in zero.items():
        assert torch.equal(value, plain[name] if "running" in name or "num_" in name
                           else -plain[name]), name  # fmt: skip
    assert_same_checkpoint(*folders[:2])
    # a half turn away from what was there before
    assert folders[0].metrics()[0]["rotation_mean"] < 1


def test_actions_beyond_the_recipe_turn_decay_and_augmentation_off(tmp_path):
    """The half without equals the half of a run that has none, to the bit."""
    config, data = make_config(epochs=4, weight_decay=0.1, at=2, flip=True), toy_data()
    off = [WeightDecay(window=Window(end=0.5)), Augment(window=Window(end=0.5))]
    windowed, resumed = start(tmp_path / "windowed", config), start(tmp_path / "resumed", config)
    run.train(config, data, windowed, actions=off)
    for epochs in (1, 3, None):
        run.train(config, data, resumed, actions=off, epochs=epochs)
    assert_same_checkpoint(windowed, resumed)
    with pytest.raises(UserError, match="with the actions .*beyond its recipe"):
        run.train(config, data, windowed)
    never = start(tmp_path / "never", config.replace(weight_decay=0.0))
    run.train(never.config(), data, never, actions=[Augment()], epochs=2)
    always = start(tmp_path / "always", config)
    run.train(config, data, always, epochs=2)

    def beginning(folder):
        return [(line["train_loss"], line["rotation"]) for line in folder.metrics()[:2]]

    assert beginning(windowed) == beginning(never) != beginning(always)


def test_no_augmentation_is_the_image_as_it_is():
    training = loop.Training(make_config(flip=True), toy_data())
    index = torch.arange(6)
    images, _ = training.batches.train(index, index, StepShape(augment=0.0))
    expected = training.data.train_images[index].float() / 255 - training.data.mean()
    assert torch.allclose(images, expected.permute(0, 3, 1, 2), atol=1e-6)
    assert not torch.allclose(
        training.batches.train(index, index, StepShape(augment=0.5))[0], images, atol=1e-3
    )


def test_a_fork_decides_by_its_own_criterion(tmp_path):
    config, data = make_config(criterion="slope45", at=None, epochs=6), toy_data()
    folder, fork = start(tmp_path / "run", config), RunFolder(tmp_path / "fork")
    other = make_config(method="detector", criterion="fixed", at=3, epochs=6)
    run.train(config, data, folder, forks=forks_at(3, fork, other))
    training = run.train(other, data, fork)
    assert (training.detector.end_epoch, training.detector.reason) == (3, "fixed: epoch 3")
    assert [line["planned_samples"] for line in fork.metrics()] == [90] * 3 + [30] * 3


def test_until_stops_at_a_stored_epoch_and_stays_stopped(tmp_path):
    config, data = make_config(epochs=4), toy_data()
    folder = start(tmp_path / "run", config)
    for _ in range(2):
        run.train(config, data, folder, until=lambda t: t.epoch >= 3)
        assert folder.checkpoint()["epoch"] == len(folder.metrics()) == 3
    run.train(config, data, folder)
    assert folder.checkpoint()["epoch"] == 4


def text_config(**options):
    base = {
        "data": "python-docs", "epochs": 3, "batch_size": 8, "method": "prune", "energy": False
    }  # fmt: skip
    return Config.from_options({**base, **options})


def test_text_is_learned_scored_by_sequence_and_resumed_to_the_bit(tmp_path):
    config, data = text_config(), toy_text()
    whole, parts = start(tmp_path / "whole", config), start(tmp_path / "parts", config)
    training = run.train(config, data, whole)
    assert training.pruner.scores.shape == (TRAIN,) and training.pruner.scores.isfinite().all()
    lines = whole.metrics()
    assert lines[-1]["test_loss"] < lines[0]["train_loss"]
    for epochs in (1, 2, 3):
        run.train(config, data, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)


def test_the_loss_of_text_is_that_of_the_next_character(tmp_path):
    training = loop.Training(text_config(), toy_text())
    tokens = training.data.test_tokens.long()
    training.model.eval()
    with torch.no_grad():
        logits = training.model(tokens[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss, accuracy = loop.evaluate(training)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy == (logits.argmax(-1) == tokens[:, 1:]).double().mean().item()


@pytest.mark.parametrize(
    ("options", "rtol"),
    [({}, 1e-5), ({"label_smoothing": 0.1, "ema": 0.9, "accumulate": 2}, 1e-5),
     ({"policy": "el2n", "anneal": 1.0}, 1e-5), ({"policy": "selective_backprop"}, 1e-5),
     ({"precision": "bf16"}, 0.02)],
    ids=str,
)  # fmt: skip
def test_the_last_layer_with_its_loss_trains_as_whole_logits_do(
    tmp_path, monkeypatch, options, rtol
):
    ends = []
    for few in (10**6, 1):
        monkeypatch.setattr(last_layer, "FEW", few)
        if few > 1:
            monkeypatch.setattr(last_layer, "computed_in", lambda dtype, device: dtype)
        folder = start(tmp_path / str(few), text_config(**options))
        training = run.train(folder.config(), toy_text(), folder)
        assert (training.hidden is None) == (few > 1)
        metrics = [(line["train_loss"], line["test_loss"]) for line in folder.metrics()]
        ends.append((torch.tensor(metrics), training.pruner.scores))
        if few == 1:
            parts = start(tmp_path / "parts", folder.config())
            run.train(folder.config(), toy_text(), parts, epochs=2)
            run.train(folder.config(), toy_text(), parts)
            assert_same_checkpoint(folder, parts)
    for whole, chunks in zip(*ends, strict=True):
        torch.testing.assert_close(chunks, whole, rtol=rtol, atol=rtol)


def test_whole_logits_are_formed_where_they_are_needed_or_cheaper(monkeypatch):
    def together(**options):
        return loop.Training(text_config(**options), toy_text()).hidden is not None

    assert not together()  # five different tokens
    monkeypatch.setattr(last_layer, "FEW", 4)
    assert together() and not together(watch="accuracy50")
    assert loop.Training(make_config(), toy_data()).hidden is None  # images
    assert last_layer.pays(5, torch.float32, torch.device("cpu"))
    assert not last_layer.pays(4, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(last_layer, "computed_in", lambda dtype, device: torch.float32)
    assert last_layer.pays(4, torch.bfloat16, torch.device("cpu"))


def test_random_labels_are_those_of_training_alone(tmp_path):
    data = toy_data()
    training = loop.Training(make_config(labels="random"), data)
    assert not torch.equal(training.data.train_labels, data.train_labels)
    assert torch.equal(training.data.test_labels, data.test_labels)
    assert training.fingerprint == loop.Training(make_config(), data).fingerprint


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("precision", "step"),
    [("fp32", "eager"), ("bf16", "graph"), ("bf16", "compile+graph"), ("fp16", "eager")],
)
def test_cuda_resume_and_times(tmp_path, precision, step):
    config = make_config(method="detector+prune", device="cuda:0", precision=precision, step=step)
    data = toy_data()
    whole, parts = start(tmp_path / "whole", config), start(tmp_path / "parts", config)
    run.train(config, data, whole)
    run.train(config, data, parts, epochs=3)
    run.train(config, data, parts)
    a, b = whole.checkpoint(), parts.checkpoint()
    if "compile" in step:
        # Its kernels are chosen by their time, in each of the three runs anew: other bits.
        assert a.keys() == b.keys() and a["epoch"] == b["epoch"] == config.epochs
        assert [line["epoch"] for line in parts.metrics()] == list(range(1, config.epochs + 1))
        assert all(math.isfinite(line["train_loss"]) for line in parts.metrics())
    else:
        assert_same_checkpoint(whole, parts)
    for line in whole.metrics():
        scoring = line["seconds"]["scoring"]
        assert scoring is None if "graph" in step else scoring > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_a_captured_step_does_what_an_eager_one_does():
    lines, weights = {}, {}
    for how in ("eager", "graph"):
        config = make_config(method="prune", device="cuda:0", precision="fp32", step=how, epochs=8)
        training = loop.Training(config, toy_data().to(torch.device("cuda:0")))
        lines[how] = [loop.train_epoch(training)["planned_samples"] for _ in range(3)]
        weights[how] = [p.detach() for p in training.model.parameters()]
    assert lines["eager"] == lines["graph"]
    for eager, graph in zip(weights["eager"], weights["graph"], strict=True):
        assert torch.equal(eager, graph)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("how", ["eager", "graph"])
def test_cuda_steps_never_wait_for_the_device(how):
    config = make_config(device="cuda:0", precision="bf16", step=how)
    training = loop.Training(config, toy_data().to(torch.device("cuda:0")))
    loop.train_epoch(training)
    step = training.step_of(training.recipe.settings(training.moment()), None)
    assert step.ready
    epoch = (torch.arange(TRAIN), torch.ones(TRAIN).long(), torch.ones(TRAIN))
    steps = training.stream.extend(*(x.cuda() for x in epoch))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(steps):
            training.schedule.step(0.5)
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
