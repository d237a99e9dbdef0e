"""--guard: what saves on trial, taken back or kept, to the bit, wherever it is stopped."""

import contextlib
import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from support.toy_training import (
    assert_same,
    assert_same_checkpoint,
    make_config,
    start,
    toy_text,
    without_times,
)

from cpfast.recipes import Window
from cpfast.train import anytime, files, guard, loggers, report, run, saved
from cpfast.train.data import ImageData
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Training
from cpfast.train.ranks import Ranks
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = '[[actions]]\naction = "learning_rate"\nfactor = 0.0\nwindow = { phase = "after" }\n'
BURNING = STILL.replace("0.0", "1e37")
NOTHING = '[[actions]]\naction = "repeats"\nrepeats = 1\n'
MODELS = ("model.json", "model.safetensors", "best.safetensors")


def data(count=150, classes=3):
    """Classes told apart by which rows are bright, a little."""
    generator = torch.Generator().manual_seed(0)

    def make(count):
        labels = torch.arange(count) % classes
        images = torch.randint(0, 120, (count, 6, 6, 1), generator=generator, dtype=torch.uint8)
        for label in range(3):
            images[labels == label, 2 * label : 2 * label + 2] += 60
        return images, labels

    names = tuple("abcdefgh"[:classes])
    return ImageData(*make(count), *make(15), names, "toy")


def configured(**options):
    base = {
        "epochs": 5, "at": 1, "guard": 5.0, "guard_share": 0.4, "eval_every": 1, "lr": 0.002,
        "model": "support.toy_training:plain_network", "momentum": 0.9,
    }  # fmt: skip
    return make_config(**{**base, **options})


def harmful(**options):
    """After the first epoch nothing is learned any more."""
    base = {"recipe_text": STILL, "method": "still", "guard": 15.0, "lr": 0.006}
    return configured(**{**base, **options})


def harmless(**options):
    base = {"method": "detector", "repeats": 2, "lr": 0.02, "guard": 10.0}
    return configured(**{**base, **options})


def undecided(**options):
    return harmless(guard=0.1, **options)


CASES = {"spending": harmful, "saving": harmless, "undecided": undecided}


def quiet(text):
    pass


def trained(path, config, samples=None, **options):
    folder = start(path, config)
    guard.train(config, data() if samples is None else samples, folder, say=quiet, **options)
    return folder


def entries(folder):
    return [line["guard"] for line in folder.metrics()]


def state_of(folder):
    """The state alone, without what says that it is guarded."""
    state = folder.checkpoint()
    for name in ("config", "data", "metrics"):
        del state[name]
    return state


def without_guard(lines):
    return [{k: v for k, v in line.items() if k != "guard"} for line in without_times(lines)]


def assert_same_run(a, b):
    assert_same_checkpoint(a, b)
    timeless = [without_times(folder.metrics()) for folder in (a, b)]
    assert timeless[0] == timeless[1]
    for name in MODELS:
        held = [(x.path / name).read_bytes() if (x.path / name).exists() else b"" for x in (a, b)]
        assert held[0] == held[1], name


class Stopped(Exception):
    pass


class Replacing:
    """Of the module os: stops at the replacing of a file of a number, before or after it."""

    def __init__(self, stop, after):
        self.calls, self.stop, self.after = 0, stop, after

    def __getattr__(self, name):
        return self.replace if name == "replace" else getattr(os, name)

    def replace(self, source, target):
        self.calls += 1
        if self.calls == self.stop and not self.after:
            raise Stopped
        os.replace(source, target)
        if self.calls == self.stop and self.after:
            raise Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undisturbed, one of each outcome."""
    path = tmp_path_factory.mktemp("whole")
    return {name: trained(path / name, make()) for name, make in CASES.items()}


def test_what_hurts_is_taken_back_and_equals_a_training_that_never_saved(whole, tmp_path):
    folder = whole["spending"]
    found = entries(folder)
    decided = next(n for n, entry in enumerate(found) if entry and entry["verdict"])
    assert 2 <= decided < 4  # not at once, and epochs follow
    assert found[0] is None and not any(found[decided + 1 :])
    assert [entry["kept"] for entry in found[1 : decided + 1]] == ["spending"] * decided
    assert [entry["verdict"] for entry in found[1:decided]] == [None] * (decided - 1)
    assert found[decided]["verdict"] == "spending" and found[decided]["lower"] > 0.15
    # from the snapshot, without saving
    config = harmful()
    held = guard.hold_out(data(), config.guard_share)
    training = Training(config, held.data, fingerprint=held.fingerprint)
    training.spends = True
    snapshot = RunFolder(folder.path / "guard" / "snapshot")
    assert snapshot.epochs() == 1
    copied = RunFolder(tmp_path / "copied")
    snapshot.fork(copied, config)
    saved.copy(snapshot.path, copied.path)
    run.advance(training, copied)
    assert_same(state_of(copied), state_of(folder))
    assert without_guard(copied.metrics()) == without_guard(folder.metrics())
    for name in MODELS:
        assert (copied.path / name).exists() == (folder.path / name).exists()
        if (copied.path / name).exists():
            assert (copied.path / name).read_bytes() == (folder.path / name).read_bytes()
    # by a recipe that has nothing to save, of which no period ends
    plain = harmful(recipe_text=NOTHING, method="plain", at=5, guard=None, guard_share=None)
    unguarded = start(tmp_path / "unguarded", plain)
    run.train(plain, held.data, unguarded)
    states = [state_of(one) for one in (unguarded, folder)]
    assert states[0].pop("detector")["end_epoch"] == 5 and states[1].pop("detector")
    assert_same(*states)


def test_what_costs_little_is_kept_and_equals_a_run_without_a_guard(whole, tmp_path):
    folder = whole["saving"]
    found = entries(folder)
    assert found[1]["verdict"] is None or found[1]["verdict"] == "saving"
    decided = next(n for n, entry in enumerate(found) if entry and entry["verdict"])
    assert found[decided]["verdict"] == "saving" and found[decided]["upper"] < 0.1
    assert {entry["kept"] for entry in found[1 : decided + 1]} == {"saving"}
    assert not any(found[decided + 1 :]) and decided < 4
    plain = harmless(guard=None, guard_share=None)
    unguarded = start(tmp_path / "unguarded", plain)
    run.train(plain, guard.hold_out(data(), 0.4).data, unguarded)
    assert_same(state_of(unguarded), state_of(folder))
    assert without_guard(unguarded.metrics()) == without_guard(folder.metrics())
    for name in MODELS[1:]:
        held = [x.path / name for x in (folder, unguarded)]
        assert held[0].exists() == held[1].exists()
        assert not held[0].exists() or held[0].read_bytes() == held[1].read_bytes()
    assert (RunFolder(folder.path / "guard" / "spending")).epochs() == decided + 1


def test_undecided_to_the_end_the_run_is_the_one_that_saves(whole):
    found = entries(whole["undecided"])
    assert [entry["verdict"] for entry in found[1:]] == [None] * 3 + ["undecided"]
    plain, other = whole["undecided"].metrics(), whole["saving"].metrics()
    assert without_guard(plain) == without_guard(other)
    text = report.run_table(report.summarise(whole["undecided"]))
    assert "guard              undecided after epoch 5 (the saving costs " in text
    assert "; the run that saves is kept" in text


def test_each_comparison_is_that_of_the_two_networks(whole, tmp_path):
    folder = whole["undecided"]
    config = undecided()
    held = guard.hold_out(data(), config.guard_share)
    line = folder.metrics()[-1]["guard"]
    right = []
    for one, spends in ((folder.path / "guard" / "spending", True), (folder.path, False)):
        training = Training(config, held.data, fingerprint=held.fingerprint)
        run.opened(training, RunFolder(one))
        images = held.samples["test_images"].float() / 255 - training.data.mean()
        logits = training.model(images.permute(0, 3, 1, 2))
        right.append((logits.argmax(1) == held.samples["test_labels"]).double().detach())
        assert training.moment().period_end == 1
        training.spends = spends
        training.epoch = 4
        assert training.moment().period_end == (None if spends else 1)
    differences = (right[0] - right[1]).numpy()
    assert line["cost"] == differences.mean()
    level = anytime.level(4)
    assert (line["lower"], line["upper"]) == anytime.bounds(differences, level)
    assert line["validation"]["samples"] == 60


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_stopped_after_an_epoch_it_ends_as_if_undisturbed(whole, tmp_path, case, stop):
    folder = trained(tmp_path / "run", CASES[case](), epochs=stop)
    assert folder.epochs() == stop
    guard.train(folder.config(), data(), folder, say=quiet)
    assert_same_run(whole[case], folder)


def test_stopped_between_the_two_it_ends_as_if_undisturbed(whole, tmp_path, monkeypatch):
    config = undecided()
    folder = start(tmp_path / "run", config)

    def compared(trial, line, other):
        raise Stopped

    for epoch in (1, 2):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(guard._Trial, "_compared", compared)
            guard.train(config, data(), folder, say=quiet)
        branch = RunFolder(folder.path / "guard" / "spending")
        assert (folder.epochs(), branch.epochs()) == (epoch, epoch + 1)
        guard.train(config, data(), folder, say=quiet, epochs=epoch + 1)
    guard.train(config, data(), folder, say=quiet)
    assert_same_run(whole["undecided"], folder)


def stopped_at(path, case, stop, after, monkeypatch):
    """A run stopped at the writing of a file of a number, and resumed; whether it came so far."""
    folder = start(path, CASES[case]())
    with monkeypatch.context() as patched:
        patched.setattr(files, "os", replacing := Replacing(stop, after))
        with contextlib.suppress(Stopped):
            guard.train(folder.config(), data(), folder, say=quiet)
    if replacing.calls < stop:
        return None
    guard.train(folder.config(), data(), folder, say=quiet)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("case", ["spending", "saving"])
def test_stopped_at_any_file_it_ends_as_if_undisturbed(whole, tmp_path, monkeypatch, case, after):
    for stop in range(1 + after, 200, 3):  # all of them take minutes
        folder = stopped_at(tmp_path / str(stop), case, stop, after, monkeypatch)
        if folder is None:
            assert stop > 20
            return
        assert_same_run(whole[case], folder)
    raise AssertionError("it never ended")


@pytest.mark.parametrize("name", ["copy", "restored"])
def test_stopped_while_it_is_taken_back(whole, tmp_path, monkeypatch, name):
    def stopping(*_):
        raise Stopped

    folder = start(tmp_path / "run", harmful())
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        if name == "copy":  # after the other files
            patched.setattr(guard._Trial, "_log_again", stopping)
        else:
            real = RunFolder.save_checkpoint

            def save_checkpoint(folder, state):
                real(folder, state)
                entry = json.loads(state["metrics"][-1])["guard"] if state["metrics"] else None
                if entry and entry["verdict"] and entry["kept"] == "spending":
                    raise Stopped

            patched.setattr(RunFolder, "save_checkpoint", save_checkpoint)
        guard.train(folder.config(), data(), folder, say=quiet)
    said = []
    guard.train(folder.config(), data(), folder, say=said.append)
    assert_same_run(whole["spending"], folder)
    assert len(said) == (1 if name == "copy" else 0)  # once it is done, it is not said again


def test_what_the_other_cost_is_charged_to_the_run(whole):
    for name, folder in whole.items():
        lines, found = folder.metrics(), [entry for entry in entries(folder) if entry]
        summary = report.summarise(folder)
        for key in ("forward_samples", "backward_samples", "measured_samples"):
            both = [line[key] for line in lines] + [entry[key] for entry in found]
            assert summary[key] == sum(both)
        flops = [line["flops"] for line in lines]
        flops += [one["flops"] for entry in found for one in (entry, entry["validation"])]
        assert summary["flops"] == sum(flops) > 0
        assert summary["seconds"]["train"] == pytest.approx(
            sum(one["seconds"]["train"] for one in (*lines, *found))
        )
        assert summary["seconds"]["evaluation"] == pytest.approx(
            sum(one["seconds"]["evaluation"] for one in (*lines, *found))
            + sum(entry["validation"]["seconds"] for entry in found)
        )
        own, of_guard = sum(line["backward_samples"] for line in lines), summary["guard"]
        assert of_guard["samples"] == sum(entry["backward_samples"] for entry in found) > 0
        assert of_guard["saved_samples"] == summary["full_samples"] - own
        assert of_guard["net_saved_samples"] == of_guard["saved_samples"] - of_guard["samples"]
        assert of_guard["verdict"] == name and of_guard["switch"] == 1
        json.dumps(report.document(summary))
    # in an epoch that both have trained, whichever was kept
    saving, spending = (whole[name].metrics()[1] for name in ("saving", "spending"))
    assert (saving["repeats"], saving["guard"]["backward_samples"]) == (1, 184)
    assert spending["guard"]["backward_samples"] == spending["backward_samples"]
    text = report.run_table(report.summarise(whole["spending"]))
    assert ": back to epoch 1, and on as if the critical period had not ended" in text
    assert "\ncost of the guard  " in text


def test_energy_is_metered_around_both(tmp_path, monkeypatch):
    folder = trained(tmp_path / "run", undecided(epochs=3))
    used = folder.energy()["seconds"]
    summary = report.summarise(folder)
    assert used >= summary["seconds"]["train"] + summary["seconds"]["evaluation"]
    assert not (folder.path / "guard" / "spending" / "energy.json").exists()
    assert RunFolder(folder.path / "guard" / "snapshot").energy()["seconds"] < used


def test_text(tmp_path):
    """By the shares of a sequence's characters."""
    config = make_config(
        data="python-docs", model="transformer", method="detector", repeats=2, epochs=3, at=1,
        guard=50.0, guard_share=0.4, lr=0.002, eval_every=1,
    )  # fmt: skip
    whole, parts = trained(tmp_path / "whole", config, toy_text()), tmp_path / "parts"
    entry = entries(whole)[1]
    assert entry["validation"]["samples"] == 12
    assert entry["cost"] * 12 * 8 == pytest.approx(round(entry["cost"] * 12 * 8))
    stopped = trained(parts, config, toy_text(), epochs=2)
    guard.train(config, toy_text(), stopped, say=quiet)
    assert_same_run(whole, stopped)


@pytest.mark.parametrize(("factor", "epoch"), [("1e37", 2), ("1e9", 3)])
def test_what_saves_diverges(tmp_path, factor, epoch):
    burning = BURNING.replace("1e37", factor)
    config = configured(recipe_text=burning, method="burning", epochs=4, guard=15.0)
    folder, said = start(tmp_path / "run", config), []
    guard.train(config, data(), folder, say=said.append)
    found = entries(folder)
    last = found[epoch - 1]
    assert last["verdict"] == last["kept"] == "spending" and not found[epoch]
    assert last["cost"] is None and f" of epoch {epoch} is " in last["reason"]
    for entry in found[1 : epoch - 1]:  # what was compared before
        assert (entry["verdict"], entry["kept"]) == (None, "spending")
    assert said[-1].startswith("guard: the run that saves is dropped (training diverged: the ")
    assert said[-1].endswith("): back to epoch 1, and on as if the critical period had not ended")
    plain = configured(recipe_text=NOTHING, method="plain", epochs=4, guard=None, guard_share=None)
    unguarded = start(tmp_path / "unguarded", plain)
    run.train(plain, guard.hold_out(data(), 0.4).data, unguarded)
    assert_same(unguarded.checkpoint()["model"], folder.checkpoint()["model"])
    report.run_table(report.summarise(folder))
    parts = trained(tmp_path / "parts", config, epochs=2)
    guard.train(config, data(), parts, say=quiet)
    assert_same_run(folder, parts)


class Burn:
    """While the period lasts, but not before it has ended in what saves."""

    @property
    def window(self):
        return Window("during")

    def apply(self, settings, amount, moment):
        return settings._replace(lr=1e37 if moment.epoch >= 1 else settings.lr)


def test_what_spends_diverges(tmp_path):
    config = harmless(epochs=3)
    folder = trained(tmp_path / "run", config, actions=[Burn()])
    entry = entries(folder)[1]
    assert (entry["verdict"], entry["kept"]) == ("saving", "saving")
    text = report.run_table(report.summarise(folder))
    assert "the run that spends is dropped (training diverged" in text


def test_where_both_diverge_it_is_an_error(tmp_path):
    config = configured(recipe_text=BURNING, method="burning")
    with pytest.raises(Diverged, match="of epoch 2 is"):
        trained(tmp_path / "run", config, actions=[Burn()])


def test_what_is_held_out_is_never_trained_on(tmp_path):
    config = undecided(epochs=3)
    held = guard.hold_out(data(), config.guard_share)
    whole = data()
    where = (whole.train_images[:, None] == held.samples["test_images"][None]).flatten(2).all(2)
    changed = whole.train_images.clone()
    changed[where.any(1)] = 7
    assert where.sum() == 60
    other = dataclasses.replace(whole, train_images=changed)
    folders = [trained(tmp_path / str(i), config, d) for i, d in enumerate((whole, other))]
    states = [folder.checkpoint() for folder in folders]
    for name in ("metrics", "data"):
        assert states[0].pop(name) != states[1].pop(name)
    assert_same(*states)


def test_each_class_has_its_share_held_out():
    held = guard.hold_out(data(150))
    labels = [held.samples["test_labels"], held.data.train_labels]
    assert [torch.bincount(part).tolist() for part in labels] == [[5] * 3, [45] * 3]
    assert held.size == 15 and held.data.describe().endswith("; 15 more are held out for --guard")
    images = torch.cat([held.samples["test_images"], held.data.train_images]).flatten(1)
    whole = data(150).train_images.flatten(1)
    assert sorted(images.tolist()) == sorted(whole.tolist())
    assert held.fingerprint == data(150).fingerprint() != held.data.fingerprint()
    again = guard.hold_out(data(150))
    assert torch.equal(held.samples["test_images"], again.samples["test_images"])
    assert len(np.unique(held.samples["test_labels"][:5])) > 1  # the order is random
    text = guard.hold_out(toy_text())
    assert (text.size, text.data.train_size) == (3, 27)
    with pytest.raises(UserError, match=r"^--guard: it would hold out 2 of 20 training samples of"):
        guard.hold_out(data(20))
    with pytest.raises(UserError, match=r"^--guard: .* 3 at least are needed of either"):
        guard.hold_out(data(20), 0.95)


def test_the_header_says_what_cannot_be_shown():
    held = guard.hold_out(data(150))
    text = guard.describe(harmless(guard=0.5), held)
    assert text.startswith("guard: 15 samples are held out of the training, to tell whether the ")
    assert "were both right alike on all of them, that would only show" in text
    assert "alike" not in guard.describe(harmless(guard=99.0), held)


def test_it_is_refused_in_one_line(tmp_path, monkeypatch):
    for options, message in (
        ({"guard": 0.0}, r"--guard must be in \(0, 100\), in points of accuracy, got 0.0"),
        ({"guard": 100.0}, r"--guard must be in \(0, 100\)"),
        ({"guard": float("nan")}, r"--guard must be in \(0, 100\)"),
        ({"guard_share": 1.0}, r"--guard-share must be in \(0, 1\), got 1.0"),
        ({"guard": None}, "--guard-share goes with --guard"),
        ({"method": "full"}, "--guard: --method full saves nothing because the critical period"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            harmless(**options)
    monkeypatch.setattr(Ranks, "__init__", lambda ranks: vars(ranks).update(size=2, rank=0))
    with pytest.raises(UserError, match="^--guard: not for 2 processes; train in one"):
        trained(tmp_path / "run", harmless())
    with pytest.raises(ValueError, match=r"^config.guard: 10; train by cpfast.train.guard.train"):
        run.train(harmless(), data(), RunFolder(tmp_path / "run"))


def test_a_period_that_ends_with_the_training_or_not_at_all(tmp_path):
    folder = trained(tmp_path / "last", harmless(epochs=2, at=2))
    assert entries(folder) == [None, None] and not (folder.path / "guard").exists()
    text = report.run_table(report.summarise(folder))
    assert "nothing was trained after the critical period\n" in text


def test_checkpoints_are_as_rare_as_asked_for_but_on_trial(whole, tmp_path):
    saved_after = []

    class Watcher:
        def step(self, epochs):
            pass

        def epoch(self, metrics):
            saved_after.append(folder.epochs())

    config = harmless(at=2, save_every=3, epochs=9)
    folder = start(tmp_path / "run", config)
    guard.train(config, data(), folder, progress=Watcher(), say=quiet)
    decided = next(n for n, entry in enumerate(entries(folder), 1) if entry and entry["verdict"])
    assert saved_after[:2] == [0, 0] and saved_after[2:decided] == [*range(3, decided + 1)]
    assert decided < 6 and saved_after[decided:] == [
        max(decided, n // 3 * 3) for n in range(decided + 1, 10)
    ]


def test_it_is_logged_as_it_was_kept(whole, tmp_path):
    config = harmful()
    folder = start(tmp_path / "run", config)
    held = guard.hold_out(data(), config.guard_share)
    training = Training(config, held.data, fingerprint=held.fingerprint)
    log = loggers.Log(["csv"], folder.path, {}, 90)
    guard.advance(training, held, folder, log=log, say=quiet)
    log.close()
    rows = (folder.path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert losses == [line["train_loss"] for line in folder.metrics()]


def test_on_trial_it_is_not_extended(tmp_path):
    folder = trained(tmp_path / "run", undecided(), epochs=1)
    guard.check_extendable(folder)
    guard.train(folder.config(), data(), folder, say=quiet, epochs=2)
    with pytest.raises(UserError, match="^--epochs: .* is still on trial by --guard; resume it"):
        guard.check_extendable(folder)
    guard.train(folder.config(), data(), folder, say=quiet)
    guard.check_extendable(folder)


def test_what_is_stored_of_it_is_not_trained_by_itself_and_not_missing(tmp_path):
    folder = trained(tmp_path / "run", undecided(), epochs=3)
    branch = RunFolder(folder.path / "guard" / "spending")
    with pytest.raises(UserError, match="a part of the guarded run .*; resume that$"):
        guard.train(branch.config(), data(), branch, say=quiet)
    checkpoint = branch.checkpoint()
    (branch.path / "config.json").rename(branch.path / "away")
    with pytest.raises(UserError, match="missing, though the run is on trial with it$"):
        guard.train(folder.config(), data(), folder, say=quiet)
    (branch.path / "away").rename(branch.path / "config.json")
    snapshot = RunFolder(folder.path / "guard" / "snapshot")
    branch.save_checkpoint(snapshot.checkpoint())
    with pytest.raises(UserError, match="after epoch 1, though the run .* is after epoch 3$"):
        guard.train(folder.config(), data(), folder, say=quiet)
    branch.save_checkpoint(checkpoint)
    guard.train(folder.config(), data(), folder, say=quiet)
