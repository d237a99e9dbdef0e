"""The comparison: shared beginnings, equal budgets, resumed arm by arm, statistics."""

import argparse
import errno
import json
import math
import re
from importlib import metadata

import numpy as np
import pytest
import torch
from support.toy_comparison import (
    END,
    ENVIRONMENT,
    EPOCHS,
    TRAIN,
    assert_same_run,
    check_picture,
    damage,
    draw,
    drawn,
    essence,
    make_config,
    metrics,
    run_with_stops,
    scratch,
    told,
    toy_data,
)
from support.toy_training import toy_text

from cpfast import criteria, pruning, recipes, studies
from cpfast.studies import show, statistics, store
from cpfast.studies.compare import Comparison, arms, picture, verdict
from cpfast.studies.falsify import Falsification
from cpfast.studies.oracle import Oracle
from cpfast.train import loop, references
from cpfast.train.errors import Diverged, UserError
from cpfast.train.plots import style
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
AT = 3
BATCH = 8


def make_plan(names=arms.DEFAULT, seeds=(0,), budgets=(), **options):
    config = make_config(**options)
    known = arms.known(AT, budgets)
    names = [*names, *(name for name, arm in known.items() if arm.budget is not None)]
    return Comparison(config, tuple(seeds), arms.choose(names, known, config.repeats), AT, budgets)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All arms, two seeds."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("compare")
    return out, studies.run(make_plan(["all"], (0, 1), (50, 100)), toy_data(), out)


def entry_of(results, arm, seed=0):
    return studies.find(results, arm=arm, seed=seed)


def entry(arm, seed, accuracy=0.9, seconds=1.0, **changes):
    """Of a run that never was."""
    made = store.entry_of(None, seed, None)
    return {
        "arm": arm, **made, "test_accuracy": accuracy, "seconds": seconds, "epochs": 1, **changes
    }  # fmt: skip


def made_up(names, runs, **changes):
    config = make_config().to_dict()
    seeds = sorted({e["seed"] for e in runs})
    return {
        "kind": "arms", "config": config, "seeds": seeds, "arms": list(names), "at": AT,
        "budgets": [], "train_size": TRAIN, "environments": [ENVIRONMENT], "runs": runs, **changes,
    }  # fmt: skip


# --- arms


def test_each_arm_and_seed_once(finished):
    out, results = finished
    assert set(results["arms"]) >= {
        "full", "detector", "k1", "k1_matched", "fixed", "shortened", "infobatch", "k1+infobatch",
        "detector+infobatch", "rs2", "k1+rs2", "detector+rs2", "shortened@50", "k1@50", "rs2@50",
        "k1@100",
    }  # fmt: skip
    assert sorted((e["seed"], e["arm"]) for e in results["runs"]) == sorted(
        (seed, arm) for seed in (0, 1) for arm in results["arms"]
    )
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


def test_each_policy_has_its_three_arms(monkeypatch):
    monkeypatch.setattr(
        arms, "policies", {**pruning.policies, "newest": pruning.policies["infobatch"]}
    )
    names = arms.known(AT)
    assert {"newest", "k1+newest", "detector+newest"} <= set(names)
    # Text alone has tokens to choose among.
    of_text = {name for name, arm in names.items() if arm.policy is not None and arm.by_name}
    assert of_text == {"tokens", "k1+tokens", "detector+tokens"}
    assert "shortened@100" not in arms.known(AT, (100,))  # it is full


def test_each_recipe_and_each_criterion_is_an_arm(tmp_path):
    known = arms.known(AT)
    for recipe in recipes.recipe.recipes:
        assert recipe in known or recipe in ("prune", "detector+prune")
    assert all(f"detector:{name}" in known for name in criteria if name != "fixed")
    names = ["early-decay", "k1+freeze", "detector:accuracy50"]
    results = studies.run(make_plan(names), toy_data(), tmp_path)
    assert [e["arm"] for e in results["runs"]] == ["full", "early-decay", "k1+freeze",
                                                   "detector:accuracy50"]  # fmt: skip
    ran = {e["arm"]: RunFolder(tmp_path / "seed0" / e["arm"]).config() for e in results["runs"]}
    assert (ran["early-decay"].method, ran["early-decay"].repeats) == ("early-decay", 3)
    assert (ran["k1+freeze"].method, ran["k1+freeze"].repeats) == ("freeze", 1)
    asked = ran["detector:accuracy50"]
    assert (asked.method, asked.criterion, asked.at) == ("detector", "accuracy50", None)
    assert all(e["diverged"] is None for e in results["runs"])


def test_the_warped_control_is_the_detector_s_training(tmp_path):
    """Pass for pass, as tests/train/test_warp.py shows; batches divide these data."""
    results = studies.run(make_plan(["k1_warped"]), toy_data(), tmp_path)
    assert results["arms"] == ["full", "detector", "k1_warped"]
    config = RunFolder(tmp_path / "seed0" / "k1_warped").config()
    assert (config.repeats, config.warp) == (1, f"3@{3 * END}")
    assert config.epochs == 3 * END + EPOCHS - END
    detector, warped = (entry_of(results, arm) for arm in ("detector", "k1_warped"))
    assert detector["backward_samples"] == warped["backward_samples"]
    assert detector["test_loss"] == warped["test_loss"]
    assert detector["test_accuracy"] == warped["test_accuracy"]
    assert warped["detection_seconds"] == 0


def test_arms_that_choose_tokens_do_so_against_a_reference(tmp_path):
    path = tmp_path / "losses.safetensors"
    losses = torch.rand(30, 8, generator=torch.Generator().manual_seed(0))
    references.write(path, {"token_loss": losses}, toy_text(), "train")
    options = {"data": "python-docs", "model": "transformer", "epochs": 3, "repeats": 2, "lr": 1e-3}
    given = {**options, "reference": str(path)}
    for name in ("out", "own"):
        (tmp_path / name).mkdir()
    for names in (["tokens"], ["tokens", "detector+tokens"]):  # full once more, for a fork of it
        made = make_plan(names, **given)
        results = studies.run(made, toy_text(), tmp_path / "out")
    assert all(run["diverged"] is None for run in results["runs"])
    for arm in made.arms:
        config = RunFolder(tmp_path / "out/seed0" / arm).config()
        assert config.reference == (str(path) if arm.endswith("tokens") else None), arm
    own = studies.run(make_plan(names, **options), toy_text(), tmp_path / "own")
    for arm in made.arms:
        ends = [entry_of(runs, arm)["test_loss"] for runs in (results, own)]
        assert (ends[0] == ends[1]) == (not arm.endswith("tokens")), arm
    assert "tokens are chosen by their losses alone" in told(own)
    with pytest.raises(UserError, match=r"another comparison: --reference None .the run has .*los"):
        studies.run(make_plan(names, **options), toy_text(), tmp_path / "out")


def test_what_one_of_the_arms_would_refuse_is_refused_before_the_first(tmp_path):
    for names, options, data, message in (
        (["k1", "tokens"], {}, toy_data(), "--policy tokens selects among the tokens of text"),
        (["k1", "selective_backprop"], {"batch_size": 1}, toy_data(), "--batch-size 1: too few"),
    ):
        with pytest.raises(UserError, match=message):
            studies.run(make_plan(names, **options), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_of_the_arms(finished):
    full = 3 * EPOCHS * TRAIN
    detector = (3 * END + EPOCHS - END) * TRAIN
    wanted = {
        "full": full, "detector": detector, "k1": EPOCHS * TRAIN, "k1_matched": detector,
        "fixed": (3 * AT + EPOCHS - AT) * TRAIN, "shortened": 3 * 3 * TRAIN, "rs2": detector,
        "shortened@50": full // 2, "k1@50": full // 2, "rs2@50": full // 2, "k1@100": full,
    }  # fmt: skip
    for seed in (0, 1):
        for arm, samples in wanted.items():
            used = entry_of(finished[1], arm, seed)["forward_samples"]
            # 240 / 18 passes of 13.3 samples: the nearest whole number is 13
            slack = 3 * EPOCHS // 2 if arm == "rs2" else 0
            assert abs(used - samples) < BATCH + slack, arm
        used = {arm: entry_of(finished[1], arm, seed)["forward_samples"] for arm in wanted}
        assert entry_of(finished[1], "k1_matched", seed)["epochs"] == 3 * END + EPOCHS - END
        assert entry_of(finished[1], "shortened", seed)["epochs"] == 3
        assert entry_of(finished[1], "infobatch", seed)["forward_samples"] < full
        assert entry_of(finished[1], "k1+rs2", seed)["forward_samples"] < used["k1"]
        assert entry_of(finished[1], "detector+rs2", seed)["forward_samples"] < used["detector"]


@pytest.mark.parametrize("size", [24, 100, 999])
def test_a_share_of_random_subsets_is_exact(size):
    config = make_config()
    for samples in range(1, size + 1):
        keep = arms._subsets(config, size, samples).keep
        assert max(1, math.floor(keep * size)) == samples


@pytest.mark.parametrize("arm", ["detector", "fixed", "detector+infobatch", "detector+rs2"])
def test_a_fork_equals_a_run_from_scratch(finished, tmp_path, arm):
    out, _ = finished
    config = RunFolder(out / "seed0" / arm).config()
    start = AT if arm == "fixed" else END
    full, forked = metrics(out / "seed0/full"), metrics(out / "seed0" / arm)
    assert forked[:start] == full[:start] and forked[start:] != full[start:]
    times = [
        [line["seconds"] for line in RunFolder(out / "seed0" / name).metrics()[:start]]
        for name in ("full", arm)
    ]
    assert times[0] == times[1]
    assert_same_run(scratch(tmp_path / "run", config).path, out / "seed0" / arm)
    assert [line["repeats"] for line in forked] == [3] * start + [1] * (EPOCHS - start)
    assert [line["prune"] for line in forked] == ([False] * start + ["+" in arm] * (EPOCHS - start))


@pytest.mark.parametrize("arm", ["k1", "k1_matched", "shortened", "rs2", "infobatch", "k1@100"])
def test_controls_do_not_pay_for_detection_and_follow_their_own_schedule(finished, arm):
    out, results = finished
    lines = RunFolder(out / "seed0" / arm).metrics()
    assert all(line["rotation"] == {} for line in lines)
    assert all(line["seconds"]["detection"] == 0 for line in lines)
    assert entry_of(results, arm)["rotation"] is None
    repeats = 1 if arm.startswith("k1") else 3
    assert {line["repeats"] for line in lines} == {repeats}
    # dropped tenfold at the half and at three quarters of its own length
    rates = [line["lr"] for line in lines]
    assert rates[0] == pytest.approx(0.05)
    if len(lines) > 3:
        assert rates[-1] == pytest.approx(0.0005)


def test_time_is_prefix_plus_rest_and_only_arms_that_watch_are_charged(finished):
    out, results = finished
    for arm, charged in (("full", 0), ("fixed", 0), ("detector", 1), ("detector+rs2", 1)):
        lines = RunFolder(out / f"seed1/{arm}").metrics()
        detection = sum(line["seconds"]["detection"] for line in lines)
        expected = sum(line["seconds"]["train"] for line in lines) - (1 - charged) * detection
        entry = entry_of(results, arm, 1)
        assert detection > 0
        assert entry["seconds"] == pytest.approx(expected)
        assert entry["detection_seconds"] == pytest.approx(charged * detection)
        assert entry["curve"][-1] == [pytest.approx(expected), entry["test_accuracy"]]
        means = [line["rotation_mean"] for line in lines]
        assert entry["rotation"] == pytest.approx(means, rel=1e-5)
        evaluation = sum(line["seconds"]["evaluation"] for line in lines)
        assert entry["evaluation_seconds"] == pytest.approx(evaluation) and evaluation > 0


def test_counts_of_the_entries_are_those_of_the_metrics(finished):
    out, results = finished
    for entry in results["runs"]:
        lines = RunFolder(out / f"seed{entry['seed']}" / entry["arm"]).metrics()
        for count in ("forward_samples", "backward_samples"):
            assert entry[count] == sum(line[count] for line in lines)
        assert entry["flops"] == sum(line["flops"] for line in lines) > 0
        assert entry["test_accuracy"] == lines[-1]["test_accuracy"]  # the last, not the best


def test_choosing_arms():
    known = arms.known(AT, (50,))
    assert arms.choose(["k1"], known, 3) == ("full", "k1")
    assert arms.choose(["shortened"], known, 3) == ("full", "detector", "shortened")
    assert arms.choose(["rs2", "fixed"], known, 3) == ("full", "detector", "fixed", "rs2")
    every = {name for name, arm in known.items() if not arm.by_name}
    assert set(arms.choose(["all"], known, 3)) == every
    both = arms.choose(["all", "paper"], known, 3)
    assert set(both) == every | {"paper"}
    with pytest.raises(UserError, match=r"--arms: no arm 'k2'; there are full, detector, k1,"):
        arms.choose(["full", "k2"], known, 3)
    once = arms.choose(["all"], known, 1)
    assert {"full", "infobatch", "detector+infobatch", "detector+rs2", "rs2@50"} <= set(once)
    assert not [name for name in once if name.startswith("k1") or name in ("rs2", "detector")]
    with pytest.raises(UserError, match=r"--arms detector,k1: with --repeats 1 no other than"):
        arms.choose(["k1", "detector"], known, 1)


@pytest.mark.parametrize("shift", range(8))
def test_order_follows_needs_and_rotates(shift):
    known = arms.known(AT)
    names = arms.choose(["all"], known, 3)
    ordered = arms.order(names, known, shift)
    assert sorted(ordered) == sorted(names)
    for name in names:
        needs = known[name].needs
        assert needs is None or ordered.index(needs) < ordered.index(name)
    free = [name for name in ordered if known[name].needs is None]
    wanted = [name for name in names[shift:] + names[:shift] if known[name].needs is None]
    assert free == wanted


# --- stops, divergence, damage


def test_a_stop_after_each_arm_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan(["all"], (0, 1), (50, 100)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


@pytest.mark.parametrize("epoch", [END, END + 1, AT + 1])
def test_a_stop_within_the_full_arm(finished, tmp_path, monkeypatch, epoch):
    out, _ = finished
    real, calls = loop.train_epoch, []

    def killed(training, progress=None):
        calls.append(training.epoch)
        if len(calls) == epoch + 1:
            raise KeyboardInterrupt
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", killed)
    made = make_plan(["detector", "fixed", "detector+rs2"])
    with pytest.raises(KeyboardInterrupt):
        studies.run(made, toy_data(), tmp_path)
    studies.run(made, toy_data(), tmp_path)
    for arm in made.arms:
        assert metrics(tmp_path / "seed0" / arm) == metrics(out / "seed0" / arm)
    # no epoch was done twice but the one under way
    assert calls.count(0) == 1 and calls[: epoch + 2] == [*range(epoch + 1), epoch]


@pytest.mark.parametrize("at", [END, EPOCHS])
def test_a_stop_between_an_epoch_and_its_forks(finished, tmp_path, monkeypatch, at):
    real = RunFolder.fork

    def killed(self, *fork):
        raise KeyboardInterrupt

    plan = make_plan(["detector"], at=at)
    monkeypatch.setattr(RunFolder, "fork", killed)
    with pytest.raises(KeyboardInterrupt):
        studies.run(plan, toy_data(), tmp_path)
    monkeypatch.setattr(RunFolder, "fork", real)
    studies.run(plan, toy_data(), tmp_path)
    # one that ends with the training is full
    same_as = finished[0] / "seed0/detector" if at == END else tmp_path / "seed0/full"
    assert metrics(tmp_path / "seed0/detector") == metrics(same_as)


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    made, real, calls = make_plan(["k1"]), RunFolder.save_checkpoint, []

    def full(self, state):
        calls.append(state["epoch"])
        if len(calls) == EPOCHS + 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "last.pt"))
        real(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        studies.run(made, toy_data(), tmp_path)
    assert [e["arm"] for e in studies.read_results(tmp_path)["runs"]] == ["full"]
    results = studies.run(made, toy_data(), tmp_path)
    assert [e["arm"] for e in results["runs"]] == ["full", "k1"]
    assert [e["epochs"] for e in results["runs"]] == [EPOCHS, EPOCHS]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    left = tmp_path / "seed0/k1/.last.pt-abc.writing"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a checkpoint")
    studies.run(make_plan(["k1"]), toy_data(), tmp_path)
    assert not left.exists()


def diverging(monkeypatch, when):
    """Training fails in the epochs of which `when(config, epoch)` says so."""
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if when(training.config, training.epoch):
            raise Diverged(f"training diverged: the training loss of epoch {training.epoch + 1}")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)


@pytest.mark.needs("matplotlib")
def test_a_diverged_arm_does_not_end_the_comparison(tmp_path, monkeypatch):
    diverging(monkeypatch, lambda c, epoch: c.method == "detector" and epoch == END + 1)
    made = make_plan(["k1", "detector", "k1_matched"])
    results, _ = run_with_stops(made, tmp_path)
    assert [e["arm"] for e in results["runs"]] == ["full", "detector", "k1", "k1_matched"]
    failed = entry_of(results, "detector")
    assert failed["diverged"].startswith("training diverged: the training loss of epoch 4")
    assert failed["test_accuracy"] is None and failed["epochs"] == END + 1
    after = entry_of(results, "k1_matched")
    assert after["diverged"] == "not run: detector, on which it depends, diverged"
    assert after["epochs"] == after["forward_samples"] == 0
    assert entry_of(results, "k1")["diverged"] is None
    assert studies.read_results(tmp_path) == results
    text = told(results)
    assert " detector diverged" in text and " diverged" in text
    assert "detector, seed 0: training diverged: the training loss of epoch 4." in text
    for name in ("accuracy.png", "rotation.png"):
        draw(results, name, tmp_path / name)


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize(("epoch", "forked"), [(0, False), (END, True)])
def test_a_full_arm_that_diverges(tmp_path, monkeypatch, epoch, forked):
    diverging(monkeypatch, lambda c, e: (c.method, c.repeats, e) == ("full", 3, epoch))
    results = studies.run(make_plan(["detector", "k1"]), toy_data(), tmp_path)
    assert entry_of(results, "full")["epochs"] == epoch
    reason = entry_of(results, "detector")["diverged"]
    assert reason is None if forked else reason.startswith("not run: full")
    assert entry_of(results, "k1")["test_accuracy"] is not None
    text = told(results)
    assert "Nothing to judge a saving by: full or all others lack a run that ended." in text
    draw(results, "accuracy.png", tmp_path / "a.png")
    draw(results, "rotation.png", tmp_path / "b.png")


@pytest.mark.needs("matplotlib")
def test_a_period_that_does_not_end_makes_the_detector_arms_full(tmp_path):
    # epochs below the window of slope45: it cannot fire
    made = make_plan(
        ["detector", "detector+rs2", "k1_matched"], criterion="slope45", at=None, epochs=3
    )
    results = studies.run(made, toy_data(), tmp_path)
    full = entry_of(results, "full")
    for arm in ("detector", "detector+rs2"):
        same = entry_of(results, arm)
        assert same["period_end"] is None
        assert same["forward_samples"] == full["forward_samples"]
        assert same["test_accuracy"] == full["test_accuracy"]
    text = told(results)
    assert "The critical period ended after epoch: not." in text
    assert entry_of(results, "k1_matched")["epochs"] == 9
    draw(results, "rotation.png", tmp_path / "rotation.png")


def test_another_comparison_is_refused_and_left_alone(finished):
    out, results = finished
    for made, message in (
        (make_plan(["all"], (0, 1), (50, 100), epochs=7), r"--epochs 7 .the run has 6"),
        (make_plan(["all"], (0,), (50, 100)), r"seeds 0 .it has 0, 1"),
        (make_plan(["k1"], (0, 1), (50, 100)), r"--arms without detector, k1_matched, .* .it has"),
        (make_plan(["all"], (0, 1), (50,)), r"--arms without k1@100 .*; --budgets without 100"),
        (Falsification(make_config(criterion="slope45", at=None), (0, 1)), "kind falsify"),
    ):
        with pytest.raises(UserError, match=f"another comparison: .*{message}"):
            studies.run(made, toy_data(), out)
    assert json.loads((out / "results.json").read_text()) == results


def test_a_limit_taken_away_is_another_comparison(tmp_path):
    store.open_results(make_plan(limit=12), 12, tmp_path)
    with pytest.raises(UserError, match=r"--limit None .the run has 12"):
        store.open_results(make_plan(), 12, tmp_path)
    # before the first run, where it runs does not matter
    store.open_results(make_plan(limit=12, plot=False, threads=3), 12, tmp_path)
    assert studies.read_results(tmp_path)["config"]["threads"] == 3
    with pytest.raises(UserError, match=r"train_size 24 .it has 12"):
        store.open_results(make_plan(limit=12), 24, tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"threads": 3}, "--threads 1, now 3: times"),
        ({"step": "compile"}, "--step eager, now compile: times"),
        (
            {"device": "cuda:0", "precision": "fp32", "step": "eager"},
            "--device cpu, now cuda:0: times",
        ),
        ({"country": "BRA"}, "--country None, now BRA: CO2e"),
        ({"price_hour": 2.0}, "--price-hour None, now 2.0: costs"),
    ],
)
def test_runs_that_could_not_be_compared_are_refused(finished, tmp_path, monkeypatch, change, what):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    path = tmp_path / "results.json"
    made = make_plan(["k1"], threads=1)
    full = entry_of(finished[1], "full")
    for begun in ([full], []):
        store.open_results(made, TRAIN, tmp_path)
        path.write_text(json.dumps({**studies.read_results(tmp_path), "runs": begun}))
        # a run under way has none in results.json
        RunFolder(tmp_path / "seed0/full").path.mkdir(parents=True, exist_ok=True)
        (tmp_path / "seed0/full/config.json").touch()
        before = path.read_bytes()
        with pytest.raises(UserError, match=f"begun with {what} would not be comparable"):
            store.open_results(make_plan(["k1"], **{"threads": 1, **change}), TRAIN, tmp_path)
        assert path.read_bytes() == before
        store.open_results(make_plan(["k1"], threads=1, plot=False), TRAIN, tmp_path)


def test_seeds_may_be_added(tmp_path):
    studies.run(make_plan(["k1"], (0,), epochs=2), toy_data(), tmp_path)
    results = studies.run(make_plan(["k1"], (0, 1), epochs=2), toy_data(), tmp_path)
    assert [(e["seed"], e["arm"]) for e in results["runs"]] == [
        (0, "full"), (0, "k1"), (1, "k1"), (1, "full")
    ]  # fmt: skip
    assert studies.read_results(tmp_path) == results and results["seeds"] == [0, 1]
    with pytest.raises(UserError, match=r"seeds 1, 2 .it has 0, 1"):
        studies.run(make_plan(["k1"], (1, 2), epochs=2), toy_data(), tmp_path)


@pytest.mark.needs("scipy")
def test_the_machine_is_stored_and_a_change_is_told(finished, tmp_path):
    (place,) = finished[1]["environments"]
    assert place["torch"] == torch.__version__ and place["gpu"] is None
    assert place["begun"].endswith("+00:00") and place["processors"] >= 1 and place["cpu"]
    other = {**place, "torch": "1.0", "begun": "2020-02-03T04:05:06+00:00"}
    made, path = make_plan(["all"], (0, 1), (50, 100)), tmp_path / "results.json"
    for runs, places in ((finished[1]["runs"], 1), (finished[1]["runs"][:-1], 2)):
        path.write_text(json.dumps({**finished[1], "environments": [other], "runs": runs}))
        opened = store.open_results(made, TRAIN, tmp_path)
        assert opened == studies.read_results(tmp_path)
        assert len(opened["environments"]) == places  # nothing more is run where all is done
    text = told(opened)
    assert f"Begun on 2020-02-03: CPU {place['cpu']}" in text
    assert f"with torch {torch.__version__} (was 1.0): compare samples, not times" in text


def test_arms_may_be_added(finished, tmp_path):
    whole, results = finished
    first = studies.run(make_plan(["k1"], (0,)), toy_data(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")}
    added = ["k1", "detector", "fixed", "detector+rs2", "k1_matched"]
    more = studies.run(make_plan(added, (0, 1), (50,)), toy_data(), tmp_path)
    assert more["runs"][:2] == first["runs"]
    assert len(more["runs"]) == 2 * len(more["arms"]) and more["budgets"] == [50]
    # nothing of what there was is trained again, and what is added is as if asked for at once
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    asked_at_once = [entry_of(results, arm) for arm in more["arms"]]
    added_later = [entry_of(more, arm) for arm in more["arms"]]
    assert essence({"runs": added_later}) == essence({"runs": asked_at_once})
    for arm in more["arms"]:
        assert_same_run(whole / "seed0" / arm, tmp_path / "seed0" / arm)
    assert not list(tmp_path.rglob("full-once-more"))
    assert "2 seeds" in told(more)
    with pytest.raises(UserError, match=r"another comparison: --arms without detector, k1_match"):
        studies.run(make_plan(["k1"], (0, 1), (50,)), toy_data(), tmp_path)


def test_a_single_run_is_no_folder_for_a_comparison(finished):
    with pytest.raises(UserError, match="holds a single run, not a comparison; choose another"):
        store.check_folder(finished[0] / "seed0/full")


@pytest.mark.parametrize(
    "key",
    [
        "environments",
        "kind",
        "config",
        "seeds",
        "arms",
        "at",
        "budgets",
        "train_size",
        "runs",
        "arm",
        *store.ENTRY,
    ],
)
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_accuracy", "high"),
        ("curve", None),
        ("seconds", None),
        ("rotation", 3),
        ("epochs", 0),
        ("test_accuracy", None),
        ("seconds", 0),
        ("curve", [[1.0]]),
        ("curve", [1.0, 0.5]),
        ("rotation", ["x"]),
        ("arm", "k2"),
        ("seed", 7),
        ("period_end", 99),
        ("kwh", "x"),
        ("flops", "x"),
        ("energy", {"components": {"cpu": {}}}),
        ("energy", {"components": {}, "co2e": {"kg": 1.0}}),
        ("energy", {"components": {}, "cost": 3}),
    ],
)
def test_results_with_a_wrong_value_are_named(finished, tmp_path, key, value):
    changed = {**finished[1]["runs"][0], key: value}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**finished[1], "runs": [changed]}))
    with pytest.raises(UserError, match=r"damaged .entry 1 of 'runs'"):
        studies.read_results(tmp_path)


def test_results_of_before_flops_were_counted_are_read(finished, tmp_path):
    runs = [{k: v for k, v in run.items() if k != "flops"} for run in finished[1]["runs"]]
    (tmp_path / "results.json").write_text(json.dumps({**finished[1], "runs": runs}))
    assert studies.read_results(tmp_path)["runs"] == runs


@pytest.mark.parametrize(
    "change",
    [{"arms": ["k1"]}, {"arms": ["full", "k2"]}, {"arms": [[]]}, {"budgets": ["x"]},
     {"environments": []}, {"environments": [{"torch": "2"}]}],
)  # fmt: skip
def test_results_with_a_wrong_head_are_named(finished, tmp_path, change):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**finished[1], **change, "runs": []}))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


def test_a_run_stored_twice_is_named(finished, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**finished[1], "runs": [finished[1]["runs"][0]] * 2}))
    with pytest.raises(UserError, match=r"entry 2 of 'runs': a second one of .'full', 0."):
        studies.read_results(tmp_path)


def test_results_of_the_version_before_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"format": "cpfast-compare-1"}')
    with pytest.raises(UserError, match="not the results of a cpfast comparison of this version"):
        studies.read_results(tmp_path)


def test_default_folder_depends_on_the_settings_that_matter():
    base = store.default_folder(make_plan())
    assert store.default_folder(make_plan(plot=False)) == base
    assert store.default_folder(make_plan(epochs=7)) != base
    assert store.default_folder(make_plan(seeds=(0, 1))) != base
    assert store.default_folder(make_plan(["fixed"])) != base


# --- statistics and tables


def test_an_epoch_without_a_step_has_the_rotation_of_the_one_before():
    lines = [{"rotation_mean": value} for value in (None, 0.25, None, 0.5)]
    assert store._rotations(lines) == [0.0, 0.25, 0.25, 0.5]


def test_a_machine_that_is_not_quiet_is_told():
    for seconds, noisy in ((14.0, False), (16.0, True)):
        runs = [entry("full", 0, seconds=10.0, forward_samples=1000),
                entry("k1", 0, seconds=seconds, forward_samples=1000)]  # fmt: skip
        text = told(made_up(("full", "k1"), runs))
        assert ("differs by up to 1.6x between runs" in text) == noisy


@pytest.mark.needs("scipy")
def test_interval_is_that_of_the_t_distribution():
    # Student's table: t(0.975; 2) = 4.303, sd = 1
    mean, half = studies.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert studies.interval([5.0]) == (5.0, None)
    scipy = pytest.importorskip("scipy.stats")
    values = [0.3, 0.9, 0.1, 0.4]
    low, high = scipy.t.interval(0.95, 3, loc=0.425, scale=scipy.sem(values))
    estimate = studies.interval(values)
    assert estimate.low == pytest.approx(low)
    assert estimate.mean + estimate.half == pytest.approx(high)


@pytest.mark.needs("scipy")
def test_differences_are_paired_and_to_the_best_control():
    runs = []
    for seed, full, once, short in (
        (0, 0.90, 0.91, 0.95),
        (1, 0.80, 0.82, 0.6),
        (2, 0.7, 0.73, 0.7),
    ):
        runs += [entry("full", seed, full, 10.0), entry("k1", seed, once, 4.0 + seed),
                 entry("shortened", seed, short, 5.0)]  # fmt: skip
    results = made_up(("full", "k1", "shortened"), runs)
    summaries, control = verdict.summarise(results)
    assert control == "k1"
    # differences 1, 2, 3 points: 2 +- 4.303 / sqrt(3); saved 60, 50, 40 %
    assert summaries["k1"].to_full == pytest.approx((2.0, 2.484), abs=1e-3)
    assert summaries["k1"].saved == pytest.approx((50.0, 24.84), abs=1e-2)
    assert summaries["k1"].to_control is None and summaries["full"].to_full is None
    # 4, -22, -3
    scipy = pytest.importorskip("scipy.stats")
    half = scipy.t.ppf(0.975, 2) * scipy.sem([4, -22, -3])
    assert summaries["shortened"].to_control == pytest.approx((-7.0, half))
    text = studies.document(results).text()
    row = next(line for line in text.splitlines() if line.startswith("k1 "))
    assert "+2.00 ± 2.48" in row and "50.0 ± 24.8" in row
    assert "  to k1  " in text and "The best of them is k1" in text


@pytest.mark.needs("scipy")
def test_pairs_need_both():
    runs = [entry("full", 0, 0.9), entry("k1", 0, 0.8), entry("k1", 1, 0.1),
            entry("full", 1, None, diverged="x")]  # fmt: skip
    summaries, _ = verdict.summarise(made_up(("full", "k1"), runs))
    assert summaries["k1"].to_full == (pytest.approx(-10.0), None)
    assert summaries["full"].diverged == {1: "x"} and set(summaries["full"].entries) == {0}


def judged(**arms_runs):
    runs = [
        entry(arm, seed, accuracy, seconds)
        for arm, (seconds, accuracies) in arms_runs.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    summaries, _ = verdict.summarise(made_up(arms_runs, runs))
    return verdict.verdict(summaries, finished=True)


@pytest.mark.needs("scipy")
def test_verdict_by_time_and_by_the_lower_end():
    full = (10.0, [0.9, 0.9, 0.9])
    # 90.1 +- 4.303 * .1 / sqrt(3) = 89.85 to 90.35: below 89.9
    text = judged(full=full, k1=(3.0, [0.900, 0.901, 0.902]))
    assert text.startswith("None of the arms run here saves at least 60 % of full's time")
    assert "The nearest is k1: it saves 70.0 %, and its lower end is 0.05 points too low." in text
    text = judged(full=full, k1=(3.0, [0.901, 0.902, 0.903]), fixed=(9.0, [0.9, 0.9, 0.9]))
    assert text.startswith("Saving at least 60 %")
    assert "k1 (70.0 % saved, lower end 89.95 %)" in text
    assert "2 arms were judged, each by its own interval: with so many, one may get there" in text
    assert text.endswith("Full's mean is taken as known.")
    text = judged(full=full, k1=(5.0, [0.901, 0.902, 0.903]), fixed=(4.5, [0.5, 0.6, 0.7]))
    assert text.endswith("The nearest is k1: it saves 50.0 %.")
    text = judged(full=full, fixed=(4.5, [0.5, 0.6, 0.7]))
    assert "The nearest is fixed: it saves 55.0 %, and its lower end is" in text
    assert judged(full=(1.0, [0.9]), k1=(0.1, [0.9])).startswith("One seed: whether an arm saves")
    two = judged(full=(1.0, [0.9, 0.9]), k1=(0.1, [0.9, 0.9]))
    assert two.startswith("Fewer than 3 seeds: whether an arm saves at least 60 %")
    assert judged(full=full).startswith("Nothing to judge a saving by: full or")


def test_nothing_is_concluded_where_full_has_learned_nothing():
    def judge(accuracy):
        runs = [
            entry(arm, seed, value, chance=0.1)
            for arm, value in (("full", accuracy), ("k1", 0.1), ("detector", 0.3))
            for seed in range(3)
        ]
        summaries, control = verdict.summarise(made_up(("full", "k1", "detector"), runs))
        return (
            verdict.verdict(summaries, finished=True), verdict.against_control(summaries, control)
        )  # fmt: skip

    said, against = judge(0.15)
    assert said.startswith("full itself has learned nothing: 15.00 %, where guessing the commonest")
    assert "Nothing follows" in said and against is None
    said, against = judge(0.25)
    assert "learned nothing" not in said and against is not None


@pytest.mark.needs("scipy")
def test_numbers_of_the_verdict_are_rounded_down():
    full = (10.0, [0.9, 0.9, 0.9])
    text = judged(full=full, k1=(4.003, [0.902, 0.902, 0.902]))
    assert text.endswith("The nearest is k1: it saves 59.9 %.")
    # exactly 60 %, though 100 * (1 - 4 / 10) is a little less
    assert judged(full=full, k1=(4.0, [0.9, 0.9, 0.9])).startswith("Saving at least 60 %")
    text = judged(full=full, k1=(3.0, [0.89899] * 3))
    assert "its lower end is 0.01 points too low" in text


@pytest.mark.needs("scipy")
def test_only_arms_of_fulls_seeds_are_judged_and_the_best_control():
    full = (10.0, [0.9] * 4)
    text = judged(full=full, k1=(1.0, [0.95] * 3), shortened=(5.0, [0.9] * 4))
    assert "The nearest is shortened: it saves 50.0 %." in text
    assert text.endswith(
        "Not judged, for other seeds than full's (seeds 0, 1, 2, 3): k1 (seeds 0, 1, 2)."
    )
    text = judged(full=full, k1=(1.0, [0.95]))
    assert text.startswith("Fewer than two common seeds: whether") and "k1 (seed 0)" in text
    text = judged(full=full, k1=(1.0, [0.95] * 3))
    assert "cannot be said: none has the seeds of full. Not judged" in text
    runs = [entry("full", s) for s in (0, 1)] + [entry("k1", 0, 0.99), entry("shortened", 0, 0.8),
            entry("shortened", 1, 0.8)]  # fmt: skip
    results = made_up(("full", "k1", "shortened"), runs)
    assert verdict.summarise(results)[1] == "shortened"
    assert "over 2 seeds (k1: 1); differences are paired" in told(results)
    # full alone, and more to come
    text = told(made_up(("full", "k1"), runs[:2]))
    assert "Nothing to judge a saving by yet" in text and "2 of 4 runs, unfinished" in text


@pytest.mark.needs("scipy")
@pytest.mark.parametrize(
    ("detector", "result"),
    [([0.95, 0.951, 0.952], "+6.00 ± 0.00 points, paired by seed: better"),
     ([0.85, 0.851, 0.852], "-4.00 ± 0.00 points, paired by seed: worse"),
     ([0.88, 0.891, 0.902], "+0.00 ± 2.48 points, paired by seed: no difference shown")],
)  # fmt: skip
def test_the_detector_is_held_against_the_best_control(detector, result):
    accuracies = {"full": [0.9] * 3, "detector": detector, "k1": [0.89, 0.891, 0.892]}
    runs = [entry(a, seed, v) for a, values in accuracies.items() for seed, v in enumerate(values)]
    summaries, control = verdict.summarise(made_up(tuple(accuracies), runs))
    assert verdict.against_control(summaries, control) == (
        f"detector against k1, the best control: {result}. Without the controls k1_matched, "
        "shortened the comparison is not complete."
    )
    del summaries["k1"]
    assert "no control ended in the same seeds as full. Without the controls k1, k1_matched" in str(
        verdict.against_control(summaries, None)
    )
    del summaries["detector"]
    assert verdict.against_control(summaries, None) is None


@pytest.mark.needs("scipy")
def test_preparation_is_told_and_not_part_of_the_time(tmp_path):
    runs = [entry("full", seed, preparation_seconds=s) for seed, s in ((0, 10.0), (1, 14.0))]
    text = told(made_up(("full",), runs))
    assert (
        "without evaluation, checkpoints, and compiling and capturing the step (up to 14 s a run: "
        "a process compiles once)" in text
    )
    folder = scratch(tmp_path / "run", make_config(epochs=1, at=1))
    (line,) = folder.metrics()
    line["seconds"]["preparation"] = 2.5
    (folder.path / "metrics.jsonl").write_text(json.dumps(line))
    made = store.entry_of(folder, 0, None)
    assert made["preparation_seconds"] == 2.5
    assert made["seconds"] == pytest.approx(line["seconds"]["train"] - line["seconds"]["detection"])


@pytest.mark.needs("scipy")
def test_text_is_at_most_100_columns_wide():
    # but where long names meet large numbers
    known = [name for name in arms.known(AT, (50,)) if len(name) <= 18]
    energy = {"components": {"cpu": {"source": "estimated"}}}
    runs = [
        entry(arm, seed, 0.9 + 0.003 * seed, 12345.6 + 100 * seed, forward_samples=30_000_000,
              backward_samples=30_000_000, kwh=123.4, energy=energy)
        for arm in known for seed in range(5)
    ]  # fmt: skip
    runs[0] = entry("full", 0, None, diverged="training diverged: the training loss of epoch 1")
    text = studies.document(made_up(tuple(known), runs, budgets=[50])).text()
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("full "))
    assert re.match(r"full +90\.75 ± 0\.62 \* ", row) and "12,596 ± " in row
    assert "123,400" in text and "energy, Wh (estimated)" in text
    assert "* Over the seeds in which it did not diverge." in text


@pytest.mark.needs("scipy")
def test_table_shows_all_and_does_not_overclaim(finished):
    results = finished[1]
    made = studies.document(results)
    text = made.text()
    for arm in results["arms"]:
        assert f"\n{arm} " in text
    assert "One seed" not in text and "unfinished" not in text
    assert "On digits this shows the mechanism, not a benefit." in text
    assert "95 % intervals (t distribution) over 2 seeds" in text and "±" in text
    assert "fixed switches after epoch 3." in text
    one = {**results, "seeds": [0], "runs": [e for e in results["runs"] if e["seed"] == 0]}
    shown = told(one)
    assert "±" not in shown and "One seed: no interval, and no conclusion" in shown
    part = {**results, "runs": results["runs"][:3]}
    assert f"3 of {len(results['runs'])} runs, unfinished" in told(part)


@pytest.mark.needs("scipy")
def test_markdown_has_the_same_cells(finished):
    made = studies.document(finished[1])
    lines = made.markdown().splitlines()
    assert lines[0] == f"# {made.title}"
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + len(finished[1]["arms"])
    assert rows[2] == f"| {' | '.join(made.tables[0].rows[0])} |"
    assert all(line.startswith("- ") for line in lines[lines.index(rows[-1]) + 2 :])


def test_forward_and_backward_are_told_apart_where_they_differ():
    runs = [entry("full", 0, forward_samples=1000, backward_samples=400)]
    made = studies.document(made_up(("full",), runs))
    header, (row,) = made.tables[0]
    cells = dict(zip(header, row, strict=True))
    assert cells["forward"] == "1,000" and cells["backward"] == "400"


def test_energy_and_cost_are_shown_where_they_are_known():
    parts = {"cpu": {"kwh": 0.5, "source": "estimated"}, "gpu": {"kwh": 1.5, "source": "measured"}}
    energy = {
        "components": parts,
        "co2e": {"kg": 0.25, "source": "estimated", "country": "ESP", "grams_per_kwh": 125.0},
        "cost": {"value": 0.6, "source": "estimated", "price_kwh": 0.3, "price_hour": None},
    }
    runs = [entry("full", 0, kwh=2.0, energy=energy, co2e_kg=0.25, cost=0.6)]
    made = studies.document(made_up(("full",), runs))
    header, (row,) = made.tables[1]
    # the parts disagree, so the header says of none that it was measured
    assert (header, row) == (
        ("arm", "energy, Wh", "CO2e, g", "cost"), ("full", "2,000", "250", "0.6")
    )  # fmt: skip
    assert "evaluation and checkpoints (CPU estimated, GPU measured)." in made.notes[-5]
    assert "CO2e is estimated, by 125 g a kWh (ESP)." in made.notes
    assert "Cost is estimated, at 0.3 a kWh." in made.notes
    parts["cpu"]["source"] = "measured"
    assert studies.document(made_up(("full",), runs)).tables[1].header[1] == (
        "energy, Wh (measured)"
    )


def test_energy_json_is_kept_whole(tmp_path):
    config = make_config(epochs=1, at=1)
    folder = scratch(tmp_path / "run", config)
    energy = {"seconds": 1.0, "kwh": None, "components": {}, "cost": None}
    energy["co2e"] = {"kg": 0.5, "source": "estimated", "grams_per_kwh": 475.0, "country": None}
    folder.save_energy(energy)
    made = store.entry_of(folder, 0, None)
    assert (made["kwh"], made["co2e_kg"], made["cost"]) == (None, 0.5, None)
    assert made["energy"] == energy


@pytest.mark.needs("scipy")
@pytest.mark.needs("matplotlib")
def test_pictures(finished, tmp_path):
    draw(finished[1], "accuracy.png", tmp_path / "accuracy.png")
    check_picture(tmp_path / "accuracy.png", "#D55E00", "#0072B2", "#009E73", "#56B4E9", "#E69F00")
    draw(finished[1], "rotation.png", tmp_path / "rotation.png")
    check_picture(tmp_path / "rotation.png", "#D55E00", "#000000")


@pytest.mark.needs("scipy")
@pytest.mark.parametrize(
    ("seeds", "spread", "title"),
    [
        (1, 0.0, ""),
        (2, 0.01, " (mean and single runs)"),
        (3, 0.01, " (95 % intervals, cut at the frame)"),
        (5, 0.01, " (95 % intervals)"),
    ],
)
def test_a_picture_says_what_its_bars_are(tmp_path, monkeypatch, seeds, spread, title):
    figures = drawn(monkeypatch)
    runs = [entry(arm, s, 0.9 + spread * (s % 2), 10.0 + 0.01 * s, curve=[[10.0, 0.9]])
            for s in range(seeds) for arm in ("full", "k1")]  # fmt: skip
    results = {**made_up(("full", "k1"), runs), "seeds": list(range(9))}
    draw(results, "accuracy.png", tmp_path / "accuracy.png")
    (figure,) = figures
    assert figure.axes[1].get_title() == f"After the last epoch{title}"
    assert f"{seeds} seeds" in figure.get_suptitle() or seeds == 1
    bars = [c for c in figure.axes[1].containers if c.has_yerr]
    assert len(bars) == (2 if seeds > 2 else 0)


@pytest.mark.parametrize(("seeds", "shown"), [(10, True), (11, False)])
def test_single_runs_are_shown_where_they_are_few(tmp_path, monkeypatch, seeds, shown):
    figures = drawn(monkeypatch)
    runs = [entry("full", s, 0.9 + 0.005 * (s % 2), 10.0 + s) for s in range(seeds)]
    draw(made_up(("full",), runs), "accuracy.png", tmp_path / "accuracy.png")
    panel = figures[0].axes[1]
    single = [line for line in panel.get_lines() if len(line.get_xdata()) == seeds]
    assert len(single) == shown
    low, high = panel.get_ylim()
    assert low < 90.0 < 90.5 < high


@pytest.mark.needs("scipy")
def test_the_controls_are_named_and_so_is_what_is_better_without_being_one():
    accuracies = {"full": 0.9, "detector": 0.8, "k1": 0.7, "k1@50": 0.8}
    runs = [entry(arm, s, value) for s in range(3) for arm, value in accuracies.items()]
    text = told(made_up(("full", "detector", "k1", "k1@50"), runs, budgets=[50]))
    assert (
        "The controls are k1, k1_matched, shortened, k1_warped, fixed, rs2, which detect nothing "
        "and score no sample (run here: k1). The best of them is k1, by its mean accuracy; chosen "
        "after the fact, it is a little too good. Arms that are none of the controls have a higher "
        "mean than it: k1@50 (+10.00 ± 0.00 points)." in text
    )
    without = told(made_up(("full", "detector", "k1"), [r for r in runs if "@" not in r["arm"]]))
    assert "(run here: k1). The best" in without and "none of the controls" not in without
    # of many the best, and how many there are; those of other seeds are not among them
    more = {f"k1+{name}": 0.71 + n / 100 for n, name in enumerate(("aum", "el2n", "ies", "ucb"))}
    runs += [entry(arm, s, value) for s in range(3) for arm, value in more.items()]
    runs.append(entry("infobatch", 0, 0.99))
    names = ("full", "detector", "k1", "k1@50", *more, "infobatch")
    assert (
        "than it: k1@50 (+10.00 ± 0.00 points), k1+ucb (+4.00 ± 0.00 points), k1+ies (+3.00 ± 0.00 "
        "points) and 2 more." in told(made_up(names, runs, budgets=[50]))
    )


@pytest.mark.needs("scipy")
def test_each_arm_there_is_can_be_drawn(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    known = arms.known(AT, (25, 50))
    runs = [
        timed(arm, seed, 0.9 + 0.002 * seed, 1 + number % 3 + 0.1 * seed)
        for number, arm in enumerate(known) for seed in range(3)
    ]  # fmt: skip
    results = made_up(tuple(known), runs, budgets=[25, 50])
    study = Comparison.of(results)
    pictures = study.pictures(results)
    assert list(pictures) == ["accuracy.png", "rotation.png", "equal-time.png"]
    for name, draw_picture in pictures.items():
        draw_picture(tmp_path / name)
    labels = [label.get_text() for label in figures[-1].axes[0].get_yticklabels()]
    summaries, _ = verdict.summarise(results)
    assert labels and set(labels) == {s.arm for s in summaries.values() if s.to_equal is not None}
    assert any(arm.by_name for name, arm in known.items() if name in labels)
    styles = {name: picture.style_of(arm) for name, arm in known.items() if arm.budget is None}
    assert styles["paper"] != styles["k1+early-decay"] != styles["detector:fisher"]


def timed(arm, seed, accuracy, seconds):
    """A thousand samples a second."""
    return entry(arm, seed, accuracy, seconds, forward_samples=round(1000 * seconds))


@pytest.mark.needs("scipy")
def test_against_ordinary_training_of_the_same_time():
    # k1 gains 10 points for each doubling of its time, and 1 more with each seed
    times = {"k1@25": 1.0, "k1@50": 2.0, "k1": 4.0}
    runs = [
        timed(arm, seed, 0.7 + 0.1 * np.log2(seconds) + 0.01 * seed, seconds)
        for arm, seconds in times.items() for seed in range(3)
    ]  # fmt: skip
    gains = (0.02, 0.03, 0.04)
    runs += [timed("full", seed, 0.95, 9.0) for seed in range(3)]
    runs[4]["seconds"] *= 3  # the machine was busy
    for seed, (seconds, gain) in enumerate(zip((1.5, 2.0, 3.5), gains, strict=True)):
        value = 0.7 + 0.1 * np.log2(seconds) + 0.01 * seed + gain
        runs += [timed("infobatch", seed, value, seconds)]
        runs += [timed("k1+infobatch", seed, 0.6, 0.5 if seed == 0 else 1.5)]
    names = ("full", "k1", "infobatch", "k1+infobatch", "k1@25", "k1@50")
    results = made_up(names, runs, budgets=[25, 50])
    summaries, _ = verdict.summarise(results)
    expected = statistics.estimate(100 * gain for gain in gains)
    assert summaries["infobatch"].to_equal == pytest.approx(expected)
    # one seed took less time than anything that was run, or more
    assert summaries["k1+infobatch"].to_equal is None and summaries["full"].to_equal is None
    assert summaries["k1"].to_equal is None
    text = told(results)
    assert "to k1@time" in text and "between k1, k1@25, k1@50, seed by" in text
    alone = made_up(names[:4], [r for r in runs if "@" not in r["arm"]])
    assert "k1@time" not in told(alone)


def test_the_picture_of_rotation_names_each_epoch_once(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    runs = [entry("full", s, rotation=[0.1, 0.2, 0.3], period_end=end, epochs=3)
            for s, end in enumerate((2, 3, 2))]  # fmt: skip
    draw(made_up(("full",), runs), "rotation.png", tmp_path / "rotation.png")
    axes = figures[0].axes[0]
    assert axes.get_legend().get_texts()[-1].get_text().endswith("ends after epoch 2, 3")
    assert all(tick == int(tick) for tick in axes.get_xticks())


# --- the folder


@pytest.mark.needs("matplotlib")
def test_a_folder_that_cannot_be_written_to_still_shows_its_table(tmp_path, monkeypatch):
    runs = [entry(arm, 0, curve=[[1.0, 0.5]]) for arm in ("full", "k1")]
    results = made_up(("full", "k1"), runs)
    (tmp_path / "accuracy.png").touch()

    def refuse(path, write):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for module in (show, style):
        monkeypatch.setattr(module, "write_atomically", refuse)
    lines = show.show(tmp_path, results, plot=True).splitlines()
    assert lines[0].startswith("digits, cnn")
    assert lines[-3:] == [
        f"{what} not written: {tmp_path / name}: Permission denied"
        for what, name in (("table", "table.md"), ("picture", "accuracy.png"),
                           ("picture", "rotation.png"))
    ]  # fmt: skip

    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(show, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        show.show(tmp_path, results, plot=False)


def test_a_report_without_pictures_keeps_links_to_those_there_are(tmp_path):
    runs = [entry(arm, 0, curve=[[1.0, 0.5]]) for arm in ("full", "k1")]
    results = made_up(("full", "k1"), runs)
    (tmp_path / "accuracy.png").touch()
    show.show(tmp_path, results, plot=False)
    text = (tmp_path / "table.md").read_text()
    assert "![accuracy.png](accuracy.png)" in text and "rotation.png" not in text


# --- options


def test_help_lists_the_arms():
    parser = argparse.ArgumentParser()
    Comparison.add_options(parser)
    text = parser.format_help()
    for name in ("full", "detector", *arms.CONTROLS, "POLICY", "k1+POLICY", "detector+POLICY"):
        assert re.search(rf"^  {re.escape(name)} +\S", text, flags=re.MULTILINE), name
    for names in ("RECIPE, k1+RECIPE", "detector:CRITERION", "k1@B, rs2@B, shortened@B"):
        assert f"\n  {names} " in text
    assert re.search(r"\n  detector +k, then 1\n", text)
    assert "k, and 1 after epoch --at" in text


def test_a_batch_larger_than_the_data_is_told_before_anything_is_run(tmp_path):
    base = make_config(criterion="slope45", at=None, batch_size=16)
    for made in (
        Falsification(base, (0,)), Oracle(base, (0,)), make_plan(batch_size=32)
    ):  # fmt: skip
        with pytest.raises(UserError, match="a batch of 32, the largest of this comparison, is"):
            studies.run(made, toy_data(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkout_that_is_not_installed_can_compare(monkeypatch):
    import cpfast
    from cpfast.studies import environment

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert environment.describe("cpu")["cpfast"] == cpfast.__version__
