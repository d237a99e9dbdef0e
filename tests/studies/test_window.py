"""Windows of regularisation: what is on when, what is held against what, stops."""

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
from cpfast.recipes import StepShape
from cpfast.studies import normalisation, store
from cpfast.studies.window import RegularisationWindow, effect
from cpfast.train import loop
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
TOTAL = 4
SPANS = [(0, 0), (0, 1), (0, 2), (2, 3), (2, 4)]


def make_plan(seeds=(0,), regularisers=("decay", "augmentation"), **given):
    config = make_config(
        criterion="slope45", at=None, epochs=TOTAL, repeats=1, detect=False, weight_decay=0.1,
        flip=True,
    )  # fmt: skip
    return RegularisationWindow(config, tuple(seeds), regularisers, **{
        "switches": (2,), "length": 1, **given
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("window")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


def test_each_window_once_beside_always_and_never(finished):
    out, results = finished
    keys = [(e["seed"], e["regulariser"], e["begin"], e["end"]) for e in results["runs"]]
    expected = [("always", 0, TOTAL)]
    expected += [(name, *span) for name in ("decay", "augmentation") for span in SPANS]
    assert keys == [(seed, *key) for seed in (0, 1) for key in expected]
    assert make_plan((0, 1)).wanted({}) == len(keys)
    assert all(e["epochs"] == TOTAL and e["diverged"] is None for e in results["runs"])
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


@pytest.mark.parametrize("name", ["decay", "augmentation"])
@pytest.mark.parametrize("span", SPANS)
def test_it_is_on_in_its_epochs_alone(finished, name, span):
    """As when each step is told by hand; forked or not."""
    training = Training(make_plan().config, toy_data())
    real = training.batches.train
    for epoch in range(TOTAL):
        on = span[0] <= epoch < span[1]
        if name == "decay":
            training.optimizer.param_groups[0]["weight_decay"] = 0.1 * on
        else:
            shape = StepShape(augment=float(on))
            training.batches.train = lambda i, d, _, shape=shape: real(i, d, shape)
        loop.train_epoch(training)
    folder = RunFolder(finished[0] / "seed0" / f"{name}-{span[0]}-{span[1]}")
    stored = folder.checkpoint()["model"]
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, stored[key]), key


def test_accuracy_is_by_the_statistics_of_the_weights_that_are_tested(finished):
    training = Training(make_plan().config, toy_data())
    state = RunFolder(finished[0] / "seed0/decay-2-4").checkpoint()["model"]
    training.model.load_state_dict(dict(state))
    normalisation.measure(training)
    entry = studies.find(finished[1], regulariser="decay", begin=2, end=4, seed=0)
    assert (entry["test_loss"], entry["test_accuracy"]) == loop.evaluate(training)


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


def test_what_begins_as_a_run_that_diverged_is_not_run(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if not training.recipe.actions[1:] and training.epoch == 1:
            raise Diverged("training diverged: epoch 2")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = studies.run(make_plan(regularisers=("decay",)), toy_data(), tmp_path)
    assert {(e["begin"], e["end"]): e["diverged"] for e in results["runs"]} == {
        (0, 4): "training diverged: epoch 2", (0, 0): None, (0, 1): None, (2, 3): None,
        (2, 4): None, (0, 2): "not run: what it begins as diverged before epoch 2",
    }  # fmt: skip
    assert "decay in epochs 0 to 2, seed 0: not run: what it begins as" in told(results)


@pytest.mark.parametrize("key", ["regularisers", "length", "regulariser", "end", *store.ENTRY])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


def results_of(accuracies):
    """By (regulariser, begin, end): of seeds 0, 1, 2."""
    runs = [
        ({"regulariser": name, "begin": begin, "end": end, "seed": seed}, value)
        for (name, begin, end), values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return made_up(make_plan((0, 1, 2), ("decay",)), runs)


@pytest.mark.needs("scipy")
def test_early_and_late_are_held_against_always_and_never():
    results = results_of(
        {
            ("always", 0, 4): [0.90, 0.91, 0.92], ("decay", 0, 0): [0.80, 0.80, 0.80],
            ("decay", 0, 2): [0.90, 0.90, 0.93], ("decay", 2, 4): [0.79, 0.80, 0.81],
        }
    )  # fmt: skip
    early = effect.against(effect.within(results, "decay", (0, 2)), effect.always(results))
    # 0, -1, 1: t(0.975; 2) = 4.3027, of a deviation of 1
    assert early == pytest.approx((0.0, 4.3027 / 3**0.5), rel=1e-4, abs=1e-9)
    text = told(results)
    assert "All of the decay, against none: +11.00 ± 2.48 points (seen)." in text
    assert "until epoch 2, against always: +0.00 ± 2.48 points (not seen" in text.replace(
        "-0.", "+0."
    )
    assert "from epoch 2 on, against never: +0.00 ± 2.48 points (not seen" in text.replace(
        "-0.", "+0."
    )
    assert "nothing follows here" not in text


@pytest.mark.needs("scipy")
def test_without_any_effect_it_says_that_nothing_follows():
    results = results_of(
        {("always", 0, 4): [0.90, 0.91, 0.92], ("decay", 0, 0): [0.91, 0.91, 0.91]}
    )
    assert "nothing follows here on when decay matters" in told(results)


@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "window.png", tmp_path / "all.png")
    check_picture(tmp_path / "all.png", "#D55E00", "#0072B2", "#009E73", "#7F7F7F")
    draw({**finished[1], "runs": finished[1]["runs"][:1]}, "window.png", tmp_path / "part.png")
