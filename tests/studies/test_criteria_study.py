"""Every criterion on true and on random labels: what is run, and what is said of it."""

import json

import pytest
import torch
from support.toy_comparison import (
    check_picture,
    damage,
    draw,
    essence,
    made_up,
    make_config,
    run_with_stops,
    told,
    toy_data,
)

from cpfast import studies
from cpfast.studies.criteria import Criteria, properties
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def make_plan(seeds=(0,), names=("base", "epochs-double"), **given):
    config = make_config(**{
        "criterion": "slope45", "at": None, "epochs": 6, "watch": "all", "schedule": "cosine",
        **given,
    })  # fmt: skip
    return Criteria(config, tuple(seeds), names)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("criteria")
    return out, studies.run(make_plan(), toy_data(), out)


@pytest.mark.slow
def test_each_setting_with_both_kinds_of_labels(finished):
    out, results = finished
    keys = [(e["seed"], e["setting"], e["labels"]) for e in results["runs"]]
    assert keys == [(0, s, labels) for s in ("base", "epochs-double")
                    for labels in ("true", "random")]  # fmt: skip
    assert [e["epochs"] for e in results["runs"]] == [6, 6, 12, 12]
    assert make_plan().wanted(results) == 4
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)
    assert RunFolder(out / "seed0" / "base-random").config().labels == "random"


@pytest.mark.slow
def test_verdicts_are_those_of_the_run(finished):
    out, results = finished
    entry = studies.find(results, setting="epochs-double", labels="true")
    lines = RunFolder(out / "seed0" / "epochs-double-true").metrics()
    assert set(entry["verdicts"]) == set(lines[-1]["criteria"]) > {"slope45", "accuracy50"}
    for name, verdict in entry["verdicts"].items():
        assert verdict["period_end"] == lines[-1]["criteria"][name]["period_end"]
        assert verdict["samples"] == sum(line["criteria"][name]["samples"] for line in lines)


@pytest.mark.slow
def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan(), tmp_path)
    assert stops == len(results["runs"])
    times = {"seconds"}
    for run in (results, finished[1]):
        for entry in run["runs"]:
            for verdict in entry["verdicts"].values():
                verdict["seconds"] = 0.0 if times else None
    assert essence(results) == essence(finished[1])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["setting_names", "verdicts", "labels"])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


def results_of(ends, seeds=(0, 1)):
    """By (setting, labels): of each seed the epoch, or None, and whether that was at once."""
    runs = []
    for (setting, labels), values in ends.items():
        for seed, (end, early) in zip(seeds, values, strict=True):
            verdict = {"period_end": end, "censored": early, "seconds": 0.1, "samples": 5}
            key = {"setting": setting, "labels": labels, "seed": seed}
            runs.append(({**key, "verdicts": {"slope45": verdict}}, 0.5))
    made = made_up(make_plan(seeds), runs)
    for entry in made["runs"]:
        entry["backward_samples"] = 100
    return made


LATE = {
    ("base", "true"): [(4, False), (5, False)],
    ("base", "random"): [(2, True), (2, False)],
    ("epochs-double", "true"): [(8, False), (5, False)],
    ("epochs-double", "random"): [(4, False), (None, False)],
}


@pytest.mark.needs("scipy")
def test_random_labels_against_true_ones():
    study, results = make_plan((0, 1)), results_of(LATE)
    random = properties.firing(study, results, "slope45", "random")
    assert (random.runs, random.ends, random.early) == (4, [2, 2, 4], 1)
    assert random.shares == [2 / 6, 2 / 6, 4 / 12]
    estimate, pairs = properties.later(results, "slope45")
    # seed 0: 2 / 4 and 4 / 8, of seed 1 2 / 5 alone
    assert pairs == 3
    assert estimate.mean == pytest.approx((-1 - 1.3219) / 2, abs=1e-3)
    assert properties.change(results, "slope45", "epochs-double") == (2 + 1) / 2
    assert properties.cost(results, "slope45") == pytest.approx((0.1, 0.05))
    text = told(results)
    assert "slope45: fired on random labels in 3 of 4 (1 at once); no difference was seen" in text


@pytest.mark.needs("scipy")
def test_what_fires_at_once_tells_nothing():
    at_once = {key: [(3, True), (3, True)] for key in LATE}
    results = results_of(at_once)
    assert properties.later(results, "slope45") == (None, 0)
    assert properties.change(results, "slope45", "epochs-double") is None
    assert "slope45: true and random labels cannot be told apart" in told(results)


@pytest.mark.needs("scipy")
def test_what_fires_on_true_labels_alone_is_said():
    ends = {key: [(None if key[1] == "random" else 3, False)] * 2 for key in LATE}
    assert "slope45: never fired on random labels, and on true ones in 4 of 4." in told(
        results_of(ends)
    )


def test_what_is_wrong_is_refused():
    with pytest.raises(UserError, match="--settings: must be of base, .*; got 'bases'"):
        make_plan(names=("bases",))


@pytest.mark.slow
@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "criteria.png", tmp_path / "all.png")
    check_picture(tmp_path / "all.png")
    draw({**finished[1], "runs": finished[1]["runs"][:1]}, "criteria.png", tmp_path / "one.png")
