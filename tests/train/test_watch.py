"""Several criteria in one run: each as if it were alone, and none changes what it watches."""

import json

import pytest
import torch
from support.toy_training import (
    assert_same,
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    without_times,
)

from cpfast.detection import CriticalPeriodDetector
from cpfast.train import loop, metrics, report, run
from cpfast.train.config import watchable
from cpfast.train.data import TextData
from cpfast.train.errors import Diverged, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(**options):
    return make_config(**{"method": "detector", "watch": "all", **options})


def trained(path, config, stops=()):
    folder = start(path, config)
    for epochs in (*stops, None):
        training = run.train(config, toy_data(), folder, epochs=epochs)
    return folder, training


@pytest.mark.parametrize("driving", ["fixed", "slope45", "fisher"])
def test_a_run_that_watches_resumes_to_the_bit(tmp_path, driving):
    config = config_of(criterion=driving, at=2 if driving == "fixed" else None)
    whole, _ = trained(tmp_path / "whole", config)
    parts, _ = trained(tmp_path / "parts", config, stops=(1, 2, 5))
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())
    lines = whole.metrics()
    assert next(iter(lines[-1]["criteria"])) == driving
    assert set(lines[-1]["criteria"]) == {driving, *watchable()}
    assert set(whole.checkpoint()["watch"]) == set(watchable()) - {driving}
    assert {name for name, found in lines[-1]["criteria"].items() if found["period_end"]}


def test_watching_changes_nothing_but_what_it_costs(tmp_path):
    alone, _ = trained(tmp_path / "alone", config_of(watch=None))
    watched, _ = trained(tmp_path / "watched", config_of())
    for part in ("model", "optimizer", "pruner", "stream", "detector", "rotation"):
        assert_same(alone.checkpoint()[part], watched.checkpoint()[part], part)
    cost = ("criteria", "measured_samples", "flops", "measured_flops")
    lines = [without_times(folder.metrics()) for folder in (alone, watched)]
    for own, with_others in zip(*lines, strict=True):
        assert own["criteria"].keys() == {"fixed"} and own["measured_samples"] == 0
        for key in own.keys() - set(cost):
            assert own[key] == with_others[key], key
        assert own["flops"] == with_others["flops"] - with_others["measured_flops"]


@pytest.mark.parametrize("name", ["accuracy50", "accordion", "early_bird", "fisher", "slope45"])
def test_each_finds_what_it_would_find_alone(tmp_path, name):
    """With the same training: method full listens to none."""
    options = {"method": "full", "patience": 2, "not_before": 2, "epochs": 12}
    alone, _ = trained(
        tmp_path / "alone", config_of(criterion=name, at=None, watch=None, **options)
    )
    watched, _ = trained(tmp_path / "watched", config_of(**options))
    own, other = (
        [line["criteria"][name] for line in without_times(folder.metrics())]
        for folder in (alone, watched)
    )
    assert own == other
    assert_same(alone.checkpoint()["detector"], watched.checkpoint()["watch"][name])


def test_costs_are_of_each_and_add_up(tmp_path):
    config = config_of(watch="gradient_confusion,gradient_predictiveness,fisher,slope45")
    folder, _ = trained(tmp_path / "run", config)
    size, total, ended = config.batch_size, 0, dict.fromkeys(config.watched, False)
    for line in folder.metrics():
        found = line["criteria"]
        assert list(found) == ["fixed", *config.watched]
        # the same batches: charged to the first who asks for them; to nobody who has decided
        confused, predicted = (ended[f"gradient_{x}"] for x in ("confusion", "predictiveness"))
        assert found["gradient_confusion"]["samples"] == (0 if confused else 4 * size)
        expected = 4 * size if confused and not predicted else 0
        assert found["gradient_predictiveness"]["samples"] == expected
        assert found["fisher"]["samples"] == (0 if ended["fisher"] else 8 * size)
        assert found["slope45"]["samples"] == found["fixed"]["samples"] == 0
        assert line["measured_samples"] == sum(x["samples"] for x in found.values())
        if not ended["fisher"]:
            assert found["fisher"]["seconds"] > found["slope45"]["seconds"] > 0
        spent = sum(x["seconds"] for x in found.values())
        assert spent <= line["seconds"]["detection"] < line["seconds"]["train"]
        total += line["measured_samples"]
        ended = {name: found[name]["period_end"] is not None for name in ended}
    assert ended["fisher"]
    table = report.run_table(report.summarise(folder))
    assert f"; {total:,} of them for the criteria" in table
    assert "watched: fisher" in table and "watched: fixed" not in table


def test_who_has_decided_is_asked_for_batches_no_more(tmp_path):
    config = config_of(criterion="fisher", at=None, watch=None, epochs=8)
    folder, training = trained(tmp_path / "run", config)
    end = training.detector.end_epoch
    assert 2 <= end < 8 and len(training.detector.history) == end
    spent = [line["measured_samples"] for line in folder.metrics()]
    assert spent == [8 * config.batch_size] * end + [0] * (8 - end)


def test_the_table_says_what_was_found_and_whether_it_is_censored(tmp_path):
    config = config_of(criterion="accuracy50", at=None, watch="slope45", epochs=8, lr=0.2)
    folder, training = trained(tmp_path / "run", config)
    slope = training.watch.detectors["slope45"]
    assert training.detector.ended and slope.end_epoch == 5 and slope.censored
    line = folder.metrics()[-1]
    assert line["censored"] == training.detector.censored
    assert line["criteria"]["slope45"]["censored"]
    table = report.run_table(report.summarise(folder))
    assert "ended after epoch 5 (censored: it could not have been found earlier)" in table


def test_a_fork_by_another_criterion_goes_on_with_what_was_watched(tmp_path):
    config = config_of(criterion="slope45", at=None, watch="fisher", method="full")
    folder, _ = trained(tmp_path / "run", config)
    state = folder.checkpoint()
    forked = config.replace(criterion="fisher", watch="slope45,accuracy50")
    training = loop.Training(forked, toy_data())
    del state["metrics"]
    run.load_state_dict(training, {**state, "config": forked.to_dict()})
    both = {"slope45": state["detector"], "fisher": state["watch"]["fisher"]}
    for name, old in both.items():
        assert training.watch.detectors[name].state_dict() == old
    assert training.detector.criterion == "fisher"
    assert training.watch.detectors["accuracy50"].history == []  # nobody watched it
    alien = config.replace(criterion="accordion")
    with pytest.raises(ValueError, match="detector: it measured for 'slope45', not accordion"):
        run.load_state_dict(loop.Training(alien, toy_data()), {**state, "config": alien.to_dict()})


@pytest.mark.parametrize(
    "change",
    [
        {"watch": None},
        {"watch": {"fisher": {}}},
        {"watch": {"fisher": {"history": [(7, [1.0])]}}},
        {"watch": {"fisher": {"history": [(1, [float("nan")])]}}},
        {"watch": {"fisher": {"history": [(1, [])]}}},
        {"probe": {"ranks": None, "gradients": {"4": [torch.zeros(3)]}, "masks": {}}},
        {"probe": {"ranks": None, "gradients": {}, "masks": {"0.5 4": [torch.zeros(3)]}}},
    ],
)
def test_a_damaged_state_is_refused_in_a_line(tmp_path, change):
    config = config_of(watch="fisher")
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder, epochs=1)
    state = folder.checkpoint()
    if isinstance(change.get("watch"), dict) and change["watch"]["fisher"]:
        change = {"watch": {"fisher": {**state["watch"]["fisher"], **change["watch"]["fisher"]}}}
    folder.save_checkpoint({**state, **change})
    with pytest.raises(UserError, match=r"last.pt: does not fit the run \(") as raised:
        run.train(config, toy_data(), folder)
    assert "\n" not in str(raised.value)


def test_a_watched_measure_that_is_not_finite_is_divergence(monkeypatch):
    training = loop.Training(config_of(watch="fisher"), toy_data())
    rule = training.watch.detectors["fisher"].rule
    monkeypatch.setattr(rule, "measure", lambda probe: torch.tensor([float("nan")]))
    with pytest.raises(Diverged, match="the measure of fisher of epoch 1 is nan"):
        loop.train_epoch(training)


def test_all_are_those_that_go_with_the_run_and_a_name_must():
    tokens = torch.zeros(8, 9, dtype=torch.uint8)
    data = TextData(tokens, tokens, "abc", "toy")
    options = {"model": "transformer", "data": "python-docs", "batch_size": 4}
    watch = loop.Training(config_of(**options), data).watch
    assert set(watch.detectors) == {"fixed", *watchable()} - {"early_bird"}
    with pytest.raises(UserError, match="^--watch early_bird: needs batch normalisation"):
        loop.Training(config_of(watch="slope45,early_bird", **options), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": "magic"}, "--watch must be one of all, accordion, .*; got 'magic'"),
        ({"watch": "fixed"}, "--watch must be one of all, .*; got 'fixed'"),
        ({"watch": ","}, "--watch must be one of all, .*; got ''"),
        ({"patience": 0}, "--patience must be at least 1, got 0"),
        ({"patience": 7}, r"--patience must be at most 6 \(--epochs\), got 7"),
        ({"not_before": 0}, "--not-before must be at least 1, got 0"),
        ({"not_before": 7}, r"--not-before must be at most 6 \(--epochs\), got 7"),
    ],
)
def test_what_does_not_go_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        config_of(**options)


def test_patience_and_the_first_epoch_reach_the_detectors():
    config = config_of(criterion="slope45", at=None, watch="fisher", patience=2, not_before=4)
    watch = loop.Training(config, toy_data()).watch
    for detector in watch.detectors.values():
        assert (detector.patience, detector.not_before) == (2, 4)
    default = CriticalPeriodDetector()
    plain = loop.Training(config_of(watch=None, criterion="slope45", at=None), toy_data())
    assert (default.patience, default.not_before) == (
        plain.detector.patience,
        plain.detector.not_before,
    )


def test_a_damaged_line_of_criteria_is_named(tmp_path):
    config = config_of(epochs=1, at=1, watch="slope45")
    line = loop.train_epoch(loop.Training(config, toy_data()))
    assert metrics.read(json.loads(json.dumps(line))) == line
    for wrong in ({"fixed": None}, {"fixed": {}}, [], {"fixed": {"seconds": "long"}}):
        with pytest.raises(ValueError, match="criteria"):
            metrics.read({**line, "criteria": wrong})
    for key, value in (("censored", 1), ("measured_samples", None), ("measured_samples", True),
                       ("flops", "many"), ("measured_flops", True)):  # fmt: skip
        with pytest.raises(ValueError, match=key):
            metrics.read({**line, key: value})
