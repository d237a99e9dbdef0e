"""The falsification: its grid, the null's numbers, what is concluded, stops and damage."""

import json
import math
from itertools import product

import pytest
import torch
from support.toy_comparison import (
    ENVIRONMENT,
    TRAIN,
    check_picture,
    damage,
    draw,
    essence,
    make_config,
    metrics,
    run_with_stops,
    told,
    toy_data,
)

from cpfast import studies
from cpfast.studies import store
from cpfast.studies.falsify import Falsification, Setting, firing, null
from cpfast.train import loop
from cpfast.train.config import Config
from cpfast.train.errors import Diverged, UserError
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
PAPER = {
    "data": "/cifar10", "model": "resnet20", "repeats": 3, "epochs": 200, "lr": 0.01,
    "weight_decay": 2e-4, "schedule": "step",
}  # fmt: skip


def make_plan(seeds=(0,), **changes):
    config = make_config(criterion="slope45", at=None, epochs=8, weight_decay=0.01)
    grid = {"batch_factors": (1.0, 2.0), "decay_factors": (1.0,), "epoch_factors": (0.5, 1.0)}
    return Falsification(config, tuple(seeds), **{**grid, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("falsify")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


def made_up(ends, seeds=(0, 1), **factors):
    """Results in which each setting's rule fired as `ends[setting, labels, seed]` says."""
    base = make_plan(seeds, **factors)
    runs = []
    for (setting, labels, seed), end in ends.items():
        entry = store.entry_of(None, seed, None)
        runs.append({"labels": labels, **setting._asdict(), **entry, "period_end": end})
    head = {"kind": "falsify", "config": base.config.to_dict(), "seeds": list(seeds)}
    head |= {"train_size": TRAIN, "environments": [ENVIRONMENT]}
    return {**head, **base.settings(), "runs": runs}


def cells(results):
    return firing.cells(store.study_of(results), results)


def test_factors_may_be_added(finished, tmp_path):
    studies.run(make_plan(batch_factors=(2.0,)), toy_data(), tmp_path)
    more = studies.run(make_plan((0, 1)), toy_data(), tmp_path)
    key = store.study_of(more).KEY
    by_key = {tuple(e[k] for k in key): e for e in more["runs"]}
    asked_at_once = [by_key[tuple(e[k] for k in key)] for e in finished[1]["runs"]]
    assert essence({"runs": asked_at_once}) == essence(finished[1])
    with pytest.raises(UserError, match=r"--batch-factors without 2.0 .it has them"):
        studies.run(make_plan((0, 1), batch_factors=(1.0,)), toy_data(), tmp_path)


# --- the null


@pytest.mark.parametrize(("batch", "epoch"), [(16, 22), (32, 34), (128, 68)])
def test_the_null_fires_where_it_was_predicted(batch, epoch):
    config = Config.from_options({**PAPER, "batch_size": batch})
    assert null.null_end(config, 50_000) == epoch


def test_the_null_is_one_minus_the_exponential_of_all_steps():
    config = Config.from_options({**PAPER, "batch_size": 100, "epochs": 8})
    found = list(null.null_rotations(config, 1000))
    expected, turned = [], 0.0
    for epoch in range(8):
        for step in range(30):
            rate = 0.01 * 0.1 ** sum((epoch + step / 30) / 8 >= m for m in (0.5, 0.75))
            turned += rate * 2e-4 / (1 - 0.9)
        expected.append(1 - math.exp(-turned))
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_null_of_a_smooth_schedule_and_of_adamw():
    config = Config.from_options({**PAPER, "batch_size": 50, "schedule": "cosine", "epochs": 10,
                                  "optimizer": "adamw"})  # fmt: skip
    steps = 3 * 1000 // 50
    turned = sum(
        0.01 * 2e-4 * (1 + math.cos(math.pi * step / (10 * steps))) / 2
        for step in range(10 * steps)
    )
    *_, last = null.null_rotations(config, 1000)
    assert last == pytest.approx(1 - math.exp(-turned), rel=1e-2)
    other = config.replace(optimizer="adagrad")
    assert null.null_rotations(other, 1000) is None and null.null_end(other, 1000) is None


# --- the runs


def test_each_setting_seed_and_labels_once(finished):
    out, results = finished
    keys = [(e["seed"], e["batch_size"], e["total_epochs"], e["labels"]) for e in results["runs"]]
    assert keys == list(product((0, 1), (8, 16), (4, 8), ("true", "random")))
    assert len(keys) == make_plan((0, 1)).wanted({"runs": []})
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


def test_a_run_ends_where_its_rule_fires(finished):
    out, results = finished
    fired = 0
    for entry in results["runs"]:
        setting = Setting(entry["batch_size"], entry["weight_decay"], entry["total_epochs"])
        name = f"{setting.name}-{entry['labels']}"
        lines = metrics(out / f"seed{entry['seed']}" / name)
        assert entry["epochs"] == len(lines) == (entry["period_end"] or entry["total_epochs"])
        means = [line["rotation_mean"] for line in lines]
        assert entry["rotation"] == pytest.approx(means, rel=1e-5)
        assert {line["repeats"] for line in lines} == {3}
        config = RunFolder(out / f"seed{entry['seed']}" / name).config()
        assert (config.lr, config.labels) == (0.05, entry["labels"])
        fired += entry["period_end"] is not None
    # with T = 4 the window of five epochs is never filled
    assert fired and all(e["period_end"] is None for e in results["runs"] if e["total_epochs"] == 4)


def test_random_labels_make_another_run_of_the_same_beginning(finished):
    for seed in (0, 1):
        key = {"seed": seed, "batch_size": 8, "total_epochs": 8}
        true, random = (
            studies.find(finished[1], labels=labels, **key) for labels in ("true", "random")
        )
        assert true["rotation"] != random["rotation"]
        assert true["train_loss"] < random["train_loss"]


def test_factors_that_make_the_same_setting_are_run_once():
    made = make_plan(batch_factors=(0.1, 0.12), decay_factors=(1.0,), epoch_factors=(1.0,))
    assert made.grid() == [Setting(1, 0.01, 8)]


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


def test_a_stop_within_a_run(finished, tmp_path, monkeypatch):
    real, calls = loop.train_epoch, []

    def killed(training, progress=None):
        calls.append(training.epoch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        studies.run(make_plan((0, 1)), toy_data(), tmp_path)
    results = studies.run(make_plan((0, 1)), toy_data(), tmp_path)
    assert calls[:4] == [0, 1, 2, 2]
    assert essence(results) == essence(finished[1])


@pytest.mark.needs("matplotlib")
def test_a_diverged_run_does_not_end_it(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if training.config.labels == "random" and training.epoch == 2:
            raise Diverged("training diverged: epoch 3")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    made = make_plan()
    results = studies.run(made, toy_data(), tmp_path)
    assert [e["diverged"] for e in results["runs"]] == [None, "training diverged: epoch 3"] * 4
    text = told(results)
    assert "4 runs diverged, and are left out." in text
    draw(results, "falsify.png", tmp_path / "falsify.png")


@pytest.mark.parametrize(
    "key",
    ["batch_factors", "decay_factors", "epoch_factors", "train_size", "labels", "batch_size",
     "weight_decay", "total_epochs", *store.ENTRY],
)  # fmt: skip
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


# --- what is concluded


GRID = [Setting(8, 0.01, 4), Setting(8, 0.01, 8), Setting(16, 0.01, 4), Setting(16, 0.01, 8)]


@pytest.mark.needs("scipy")
def test_the_difference_is_paired_and_its_interval_over_seeds():
    ends = {}
    for number, setting in enumerate(GRID):
        for seed in (0, 1):
            ends[setting, "true", seed] = 10 + number
            # later by 1 and by 3 in the two seeds
            ends[setting, "random", seed] = 11 + number + 2 * seed
    ends[GRID[3], "random", 1] = None  # never: no pair
    found = cells(made_up(ends))
    estimate, pairs, censored = firing.paired_difference(found, 5)
    assert (pairs, censored) == (7, 0)
    # t(0.975; 1) = 12.706, and the seeds' means are 1 and 3
    assert estimate == pytest.approx((2.0, 12.706 * math.sqrt(2) / math.sqrt(2)), rel=1e-3)
    assert firing.paired_difference([], 5) == (None, 0, 0)
    text = told(made_up(ends))
    assert "fired 2.0 epochs later than with true ones, in the mean of 7 pairs" in text
    assert "With random labels the rule fired in 7 of 8 runs" in text
    assert "(1 never)" in text


def test_match_is_of_logarithms_and_of_ranks():
    scipy = pytest.importorskip("scipy.stats")
    true, random = [5, 10, 20, 40], [6, 9, 30, 29]
    ends = {}
    for setting, a, b in zip(GRID, true, random, strict=True):
        ends[setting, "true", 0], ends[setting, "random", 0] = a, b
    found = cells(made_up(ends, seeds=(0,)))
    matched = firing.match(found, "random", 5)
    r = scipy.pearsonr([math.log(v) for v in true], [math.log(v) for v in random]).statistic
    # the ratios are 1.2, 0.9, 1.5, 0.725
    assert matched == (
        4, pytest.approx(r**2), pytest.approx(0.8), pytest.approx(1.05), 0
    )  # fmt: skip
    assert firing.match(found[:2], "random", 5)[:3] == (2, None, None)
    # each null of these fires at one and the same epoch, or never
    assert firing.match(found, "null", 5).shared is None
    text = told(made_up(ends, seeds=(0,)))
    assert f"r^2 of logarithms {r**2:.2f} and a rank correlation of 0.80" in text
    assert "so this is no agreement in the epoch: the median ratio, random / true, is 1.05." in text
    assert "one seed, so no interval" in text
    assert "1 of these fired after epoch 5, the first that fills the rule's window, and" in text


@pytest.mark.needs("scipy")
def test_what_fired_as_early_as_it_can_is_no_measurement():
    ends = {}
    for setting, seeds in zip(GRID, ([(5, 5), (5, 5)], [(5, 5), (5, 7)], [(9, 9), (6, 6)],
                                     [(8, 8), (9, 9)]), strict=True):  # fmt: skip
        for seed, (true, random) in enumerate(seeds):
            ends[setting, "true", seed], ends[setting, "random", seed] = true, random
    found = cells(made_up(ends))
    assert firing.earliest("slope45") == 5
    estimate, pairs, censored = firing.paired_difference(found, 5)
    assert (pairs, censored, estimate.mean) == (5, 3, pytest.approx((0 + 2 / 3) / 2))
    assert firing.match(found, "random", 5)[-1] == 1
    made = studies.document(made_up(ends))
    shown = [row[3:6] for row in made.tables[0].rows]
    assert shown[0] == ("<= 5", "<= 5", "")
    assert shown[1][0] == "<= 5" and shown[1][1].endswith("(1 <= 5)") and shown[1][2] == "+2.0"
    text = told(made_up(ends))
    assert "Left out of that: 3 pairs of which both fired after epoch 5 at the latest." in text
    assert "Over 3 settings (1 left out, both <= 5)" in text
    early = dict.fromkeys(ends, 5)
    assert "cannot be told apart: in all 8 pairs" in told(made_up(early))
    assert "Left out of that" not in told(made_up(early))
    # a null as early as it can be is marked as well
    nulls = {row[6] for row in made.tables[0].rows}
    assert nulls <= {"<= 5", "never"} and "<= 5" in nulls
    same = {key: end if key[1] == "true" else ends[key[0], "true", key[2]]
            for key, end in ends.items()}  # fmt: skip
    assert "fired as late as with true ones" in told(made_up(same))


def test_decays_that_print_alike_have_folders_of_their_own():
    made = make_plan(decay_factors=(1.0, 1.0000001), batch_factors=(1.0,), epoch_factors=(1.0,))
    assert len({setting.name for setting in made.grid()}) == 2


def test_table_of_a_real_run(finished):
    made = studies.document(finished[1])
    text = told(finished[1])
    assert len(made.tables[0].rows) == 4
    assert "scale-invariant layers in equilibrium, which a fresh network is not in" in text
    assert made.markdown().count("\n| ") == 2 + 4
    part = {**finished[1], "runs": finished[1]["runs"][:1]}
    assert "1 of 16 runs, unfinished" in told(part)


def test_the_right_picture_has_ticks_and_legend_of_one_size(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    ends = {(s, labels, 0): 5 for s in GRID for labels in ("true", "random")}
    results = made_up(ends, seeds=(0,))
    for e in results["runs"]:
        e |= {"rotation": [0.1, 0.2, 0.3, 0.35, 0.37], "epochs": 5}
    draw(results, "falsify.png", tmp_path / "falsify.png")
    left, right = figures[0].axes
    assert list(right.get_xticks()) == [4, 5, 6] == list(right.get_yticks())
    marks = [line.get_markersize() for line in right.get_legend().get_lines()[1:]]
    assert len(set(marks)) == 1
    assert "5: as early as the rule can fire" in [
        t.get_text() for t in right.get_legend().get_texts()
    ]
    # each line is marked where it fires, by its own marker
    assert [(line.get_marker(), line.get_markevery()) for line in left.get_lines()] == [
        ("D", [5]), ("s", [5]), ("o", [5])
    ]  # fmt: skip


@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "falsify.png", tmp_path / "falsify.png")
    check_picture(tmp_path / "falsify.png", "#D55E00", "#0072B2", "#7F7F7F")
    # without a null, before all is run, and where nothing has fired
    config = {**finished[1]["config"], "optimizer": "adagrad"}
    part = {**finished[1], "config": config, "runs": finished[1]["runs"][:3]}
    draw(part, "falsify.png", tmp_path / "part.png")
    check_picture(tmp_path / "part.png", "#D55E00")
