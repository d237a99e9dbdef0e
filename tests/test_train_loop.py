"""The loop: what each method spends, resume to the bit, divergence, unfit checkpoints."""

import copy
import dataclasses
import errno
import gc
import json
import math
import random
import shutil
import weakref

import numpy as np
import pytest
import torch

from cpfast import ops
from cpfast.recipes import EpochSettings, recipes
from cpfast.train import loop, metrics, report, run
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.energy import EnergyMeter
from cpfast.train.errors import Diverged, UserError
from cpfast.train.metrics import EpochMetrics
from cpfast.train.runfolder import RunFolder
from cpfast.train.step import WARM_UP

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 3
TRAIN = 30


def toy_data(seed=0):
    """Three classes told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(seed)

    def make(count):
        labels = torch.arange(count) % CLASSES
        images = torch.randint(0, 90, (count, 6, 6, 1), generator=generator, dtype=torch.uint8)
        for label in range(CLASSES):
            images[labels == label, 2 * label : 2 * label + 2] += 120
        return images, labels

    return ImageData(*make(TRAIN), *make(15), ("a", "b", "c"), "toy")


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
        assert a == b, where


def assert_same_checkpoint(a, b):
    """Equal to the bit, but for the times in the lines of metrics."""
    states = [folder.checkpoint() for folder in (a, b)]
    lines = [[json.loads(line) for line in state.pop("metrics")] for state in states]
    assert_same(*states)
    assert without_times(lines[0]) == without_times(lines[1])


def without_times(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("method", recipes)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resume_equals_no_stop_to_the_bit(tmp_path, method, stop):
    config, data = make_config(method=method), toy_data()
    whole = start(tmp_path / "whole", config)
    run.train(config, data, whole)
    parts = start(tmp_path / "parts", config)
    run.train(config, data, parts, epochs=stop)
    assert parts.checkpoint()["epoch"] == stop
    run.train(config, data, parts)
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())


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
    data = toy_data()
    spent = {}
    for method in recipes:
        config = make_config(method=method, epochs=8, at=3)
        folder = start(tmp_path / method, config)
        run.train(config, data, folder)
        lines = folder.metrics()
        full = [line["full_samples"] for line in lines]
        assert sum(full) == 3 * TRAIN * 8 // 8 * 8 and set(full) == {88, 96}  # whole batches
        if method == "full":  # has saved nothing, in no epoch
            assert full == [line["backward_samples"] for line in lines]
        assert [line["period_end"] for line in lines] == [None] * 2 + [3] * 6
        spent[method] = [
            (line["repeats"], line["prune"], line["planned_samples"]) for line in lines
        ]
    assert spent["full"] == [(3, False, 90)] * 8
    assert spent["detector"] == [(3, False, 90)] * 3 + [(1, False, 30)] * 5
    assert spent["prune"][0] == (3, True, 90)
    assert [s[:2] for s in spent["prune"]] == [(3, True)] * 7 + [(3, False)]
    assert spent["prune"][7][2] == 90  # annealed
    assert min(s[2] for s in spent["prune"]) < 90
    assert spent["detector+prune"][:3] == [(3, False, 90)] * 3
    after = [s[2] for s in spent["detector+prune"][3:]]
    assert min(after) < 30 and after[-1] == 30


def test_every_arm_scores_and_times_its_parts():
    for method in recipes:
        training = loop.Training(make_config(method=method), toy_data())
        seconds = loop.train_epoch(training)["seconds"]
        assert 0 < seconds["scoring"] < seconds["train"] and seconds["detection"] > 0
        assert seconds["scoring"] + seconds["selection"] + seconds["detection"] < seconds["train"]
        assert seconds["preparation"] == 0
        # all but the two samples left over for the next epoch
        assert training.pruner.scores.isinf().sum() == 0
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

    def loss(logits, target, index, weight):
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


def test_a_compiled_step_does_what_an_eager_one_does():
    weights = {}
    for how in ("eager", "compile"):
        training = loop.Training(make_config(step=how, method="prune"), toy_data())
        step = training.step_of(EpochSettings(), None)
        assert step.ready == (how == "eager")
        training.stream.extend(torch.arange(16), torch.zeros(16).long(), torch.ones(16))
        for _ in range(2):
            step()
        weights[how] = [p.detach() for p in training.model.parameters()]
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


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 7},
        {"epoch": -1},
        {"stream": {"index": torch.tensor([30]), "draw": torch.tensor([0]),
                    "weight": torch.ones(1)}},
    ],
)  # fmt: skip
def test_a_checkpoint_out_of_range_is_named(tmp_path, change):
    config, data = make_config(), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    folder.save_checkpoint({**folder.checkpoint(), **change})
    with pytest.raises(
        UserError, match=r"last.pt: (does not fit the|not a checkpoint of a cpfast) run"
    ):
        run.train(config, data, folder)


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


def test_divergence_names_epoch_and_value_and_keeps_the_last_epoch(tmp_path):
    config, data = make_config(epochs=3, lr=0.05), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    state = folder.checkpoint()
    state["model"]["head.bias"][0] = math.nan
    folder.save_checkpoint(state)
    with pytest.raises(Diverged, match="training loss of epoch 2 is nan"):
        run.train(config, data, folder)
    assert folder.checkpoint()["epoch"] == 1 and len(folder.metrics()) == 1


def test_huge_learning_rate_diverges_with_a_clear_error(tmp_path):
    config = make_config(epochs=3, lr=1e30, method="detector+prune")
    with pytest.raises(Diverged, match=r"training diverged: .* of epoch 1 is"):
        run.train(config, toy_data(), start(tmp_path / "run", config))


def test_checkpoint_of_another_run(tmp_path):
    data, first, second = toy_data(), make_config(epochs=2), make_config(epochs=2, seed=1)
    a, b = start(tmp_path / "a", first), start(tmp_path / "b", second)
    run.train(first, data, a, epochs=1)
    run.train(second, data, b, epochs=1)
    (b.path / "last.pt").write_bytes((a.path / "last.pt").read_bytes())
    with pytest.raises(UserError, match=r"b/last.pt: of another run \(it differs in seed\)"):
        run.train(second, data, b)


@pytest.mark.parametrize(
    "change",
    [
        {"config": "none"},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": []},
        {"model": 3},
        {"pruner": None},
        {"schedule": None},
        {"rotation": {}},
        {"detector": ["x"]},
    ],
)
def test_a_malformed_checkpoint_is_named(tmp_path, change):
    config, data = make_config(epochs=2), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    folder.save_checkpoint({**folder.checkpoint(), **change})
    with pytest.raises(UserError, match=r"last.pt: does not fit the run"):
        run.train(config, data, folder)


@pytest.mark.parametrize(("epochs", "done"), [(3, 2), (1, 1), (2, 2), (2, 1)])
def test_a_missing_checkpoint_does_not_cost_the_metrics(tmp_path, epochs, done):
    config, data = make_config(epochs=epochs, at=1), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=done)
    (folder.path / "last.pt").unlink()
    before = folder.metrics()
    with pytest.raises(UserError, match=rf"last.pt: missing, though {done} of {epochs} epochs"):
        run.train(config, data, folder)
    assert folder.metrics() == before


@pytest.mark.parametrize("call", [0, 1])
def test_a_disk_full_at_the_first_checkpoints(tmp_path, monkeypatch, call):
    config, data, calls = make_config(epochs=1, at=1), toy_data(), []
    whole, folder = (start(tmp_path / name, config) for name in ("whole", "run"))
    run.train(config, data, whole)
    real = RunFolder.save_checkpoint

    def full(self, state):
        calls.append(state["epoch"])
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run.train(config, data, folder)
    assert calls == [0, 1][: call + 1] and len(folder.metrics()) == call
    run.train(config, data, folder)
    assert_same_checkpoint(whole, folder)
    assert len(folder.metrics()) == 1


def test_energy_is_stored_before_the_last_checkpoint(tmp_path, monkeypatch):
    config, data = make_config(epochs=2), toy_data()
    folder = start(tmp_path / "run", config)
    real = RunFolder.save_energy

    def full(self, energy):
        if (self.epochs(), len(self.metrics())) == (2, 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, energy)

    monkeypatch.setattr(RunFolder, "save_energy", full)
    with pytest.raises(OSError, match="No space left"):
        run.train(config, data, folder)
    run.train(config, data, folder)
    assert folder.energy()["seconds"] > sum(x["seconds"]["train"] for x in folder.metrics())


def test_weights_spoilt_by_the_last_step_are_noticed(tmp_path, monkeypatch):
    config, data = make_config(method="full", epochs=2, detect=False), toy_data()
    folder = start(tmp_path / "run", config)
    real = loop.evaluate

    def spoilt(training, progress=None):
        if training.epoch == 2:
            with torch.no_grad():
                next(training.model.parameters()).fill_(math.inf)
        return real(training, progress)

    monkeypatch.setattr(loop, "evaluate", spoilt)
    with pytest.raises(Diverged, match="the test loss of epoch 2 is nan"):
        run.train(config, data, folder)
    assert len(folder.metrics()) == folder.epochs() == 1


NEW = {"frozen": 0, "scored_samples": 0}  # since version 0.1.0


@pytest.mark.parametrize(
    "key", [*sorted(EpochMetrics.__annotations__.keys() - NEW.keys() - {"epoch"}), "selection"]
)
def test_a_line_of_metrics_that_lacks_something_is_named(tmp_path, key):
    config = make_config(epochs=1, at=1)
    folder = start(tmp_path / "run", config)
    line = loop.train_epoch(loop.Training(config, toy_data()))
    del (line["seconds"] if key == "selection" else line)[key]
    folder.restore_metrics([json.dumps(line)])
    with pytest.raises(UserError, match=rf"metrics.jsonl, line 1: damaged .line.*: no '{key}'"):
        report.summarise(folder)


def test_a_line_of_metrics_of_wrong_types_is_named(tmp_path):
    config = make_config(epochs=1, at=1)
    folder = start(tmp_path / "run", config)
    whole = loop.train_epoch(loop.Training(config, toy_data()))
    report.run_table(summarised(folder, whole))
    seconds = metrics.Seconds.__annotations__
    keys = [(key,) for key in metrics._FORM.forms] + [("seconds", key) for key in seconds]
    for *outer, key in keys:
        for wrong in (True, [1], {"a": None}, 10**400, math.inf if key != "slope" else []):
            line = copy.deepcopy(whole)
            (line["seconds"] if outer else line)[key] = wrong
            with pytest.raises(UserError, match="line 1: damaged") as raised:
                summarised(folder, line)
            assert "\n" not in str(raised.value)


def summarised(folder, line):
    folder.restore_metrics([json.dumps(line)])
    return report.summarise(folder)


def test_lines_are_as_they_are_described_and_those_of_an_earlier_version_are_read(tmp_path):
    config = make_config(epochs=1, at=1)
    folder = start(tmp_path / "run", config)
    line = loop.train_epoch(loop.Training(config, toy_data()))
    assert line.keys() == EpochMetrics.__annotations__.keys()
    old = {key: value for key, value in line.items() if key not in NEW}
    assert summarised(folder, old)["metrics"] == [line | NEW]


@pytest.mark.parametrize("policy", ["infobatch", "random"])
def test_training_loss_estimates_that_of_all_samples(policy, monkeypatch):
    training = loop.Training(make_config(method="prune", policy=policy, repeats=2), toy_data())
    training.epoch = 2
    training.pruner.update(torch.arange(TRAIN), torch.linspace(0, 1, TRAIN))

    def constant(logits, labels, index, weight):
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


def test_data_that_changed(tmp_path):
    config = make_config(epochs=2)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder, epochs=1)
    with pytest.raises(UserError, match="of other data: the run began with"):
        run.train(config, toy_data(seed=1), folder)


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


def toy_text():
    """Sequences that count on, from anywhere, in a circle of five characters."""

    def make(count):
        return ((torch.arange(count)[:, None] + torch.arange(9)) % 5).to(torch.uint8)

    return TextData(make(20), make(10), "abcde", "toy")


def text_config(**options):
    base = {
        "data": "python-docs", "epochs": 3, "batch_size": 8, "method": "prune", "energy": False
    }  # fmt: skip
    return Config.from_options({**base, **options})


def test_text_is_learned_scored_by_sequence_and_resumed_to_the_bit(tmp_path):
    config, data = text_config(), toy_text()
    whole, parts = start(tmp_path / "whole", config), start(tmp_path / "parts", config)
    training = run.train(config, data, whole)
    assert training.pruner.scores.shape == (20,) and training.pruner.scores.isfinite().all()
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


@pytest.mark.parametrize("cut", ["emptied", "last line", "damaged", "removed"])
def test_metrics_changed_between_two_runs_come_back(tmp_path, capsys, cut):
    config, data = make_config(epochs=3), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=2)
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    if cut == "removed":
        path.unlink()
    else:
        path.write_bytes(
            {"emptied": b"", "last line": whole[: whole.index(b"\n") + 1],
             "damaged": b"x" + whole[1:]}[cut]
        )  # fmt: skip
    run.train(config, data, folder, epochs=2)  # as `cpfast train --resume` of a finished run
    assert path.read_bytes() == whole
    note = "metrics.jsonl: damaged, or lines are missing; it is written again from last.pt"
    assert note in capsys.readouterr().err
    run.train(config, data, folder)
    assert path.read_bytes().startswith(whole) and len(folder.metrics()) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "metrics.jsonl").write_text(""), "metrics.jsonl: 0 bytes, expected"),
        (lambda path: shutil.rmtree(path), "run: removed, moved or emptied"),
        (lambda path: path.rename(path.with_name("moved")), "run: removed, moved or emptied"),
        (lambda path: [p.unlink() for p in path.iterdir()], "run: removed, moved or emptied"),
        (lambda path: (path / "config.json").unlink(), "run: removed, moved or emptied"),
    ],
    ids=["cut", "removed", "moved", "emptied", "config"],
)
def test_a_folder_changed_in_mid_run_is_noticed_at_the_next_epoch(
    tmp_path, monkeypatch, change, message
):
    config, data = make_config(epochs=6), toy_data()
    folder, epochs = start(tmp_path / "run", config), []
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        epochs.append(training.epoch)
        if training.epoch == 2:
            change(folder.path)
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    with pytest.raises(UserError, match=message) as raised:
        run.train(config, data, folder)
    assert "\n" not in str(raised.value) and epochs == [0, 1, 2]
    if folder.path.exists():  # and nothing is left in a folder that was emptied
        assert message.startswith("metrics") or not (folder.path / "energy.json").exists()
    monkeypatch.undo()
    for rest in (folder, RunFolder(tmp_path / "moved")):
        if rest.is_run():
            run.train(config, data, rest)
            assert len(rest.metrics()) == 6
