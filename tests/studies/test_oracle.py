"""The oracle sweep: its forks and picks, the best epoch by the other seeds, regret, stops."""

import json

import pytest
import torch
from support.toy_comparison import (
    ENVIRONMENT,
    assert_same_run,
    check_picture,
    damage,
    draw,
    essence,
    make_config,
    metrics,
    run_with_stops,
    scratch,
    told,
    toy_data,
)

from cpfast import studies
from cpfast.detection import Criterion, CriticalPeriodDetector, criteria
from cpfast.studies import store
from cpfast.studies.oracle import Oracle, regret
from cpfast.studies.oracle import study as oracle
from cpfast.studies.settings import SETTINGS
from cpfast.train import loop
from cpfast.train.errors import Diverged, UserError
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
EPOCHS = 8
TRAIN = 24


def make_plan(seeds=(0,), settings=("base", "epochs-half"), switches=(2,), **options):
    config = make_config(**{"criterion": "slope45", "at": None, "epochs": EPOCHS, **options})
    return Oracle(config, tuple(seeds), tuple(settings), tuple(switches))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("oracle")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


def made_up(accuracies, picks, total=EPOCHS):
    """Results of the base setting: accuracy by switch epoch and seed, pick by seed."""
    base = make_plan(sorted(picks), ["base"])
    runs = []
    for switch, by_seed in accuracies.items():
        for seed, accuracy in by_seed.items():
            entry = store.entry_of(None, seed, None)
            entry |= {"test_accuracy": accuracy, "epochs": total}
            entry["forward_samples"] = TRAIN * (total + 2 * switch)
            picked = {"slope45": picks[seed]} if switch == total else None
            runs.append({"setting": "base", "switch": switch, "picks": picked, **entry})
    head = {"kind": "oracle", "config": base.config.to_dict(), "seeds": list(base.seeds)}
    head |= {"train_size": TRAIN, "environments": [ENVIRONMENT]}
    return {**head, **base.settings(), "runs": runs}


def sweeps(results):
    return regret.sweeps(store.study_of(results), results)


# --- the runs


@pytest.mark.parametrize(
    ("total", "grid"),
    [(120, [1, 2, 4, 8, 15, 30, 60]), (200, [2, 3, 6, 12, 25, 50, 100]), (1, [1])],
)
def test_switch_epochs_double_up_to_the_half(total, grid):
    assert oracle.geometric(total) == grid


def test_settings_halve_and_double_one_thing_each():
    made = make_plan(settings=tuple(SETTINGS), switches=(), epochs=20, weight_decay=0.01)
    base = made.configured("base")
    for name, key, value in (
        ("decay-half", "weight_decay", 0.005), ("decay-double", "weight_decay", 0.02),
        ("batch-half", "batch_size", 4), ("batch-double", "batch_size", 16),
    ):  # fmt: skip
        assert made.configured(name) == base.replace(**{key: value})
    for name, epochs in (("epochs-half", 10), ("epochs-double", 40)):
        assert made.configured(name) == base.replace(epochs=epochs, eval_every=epochs)
        assert made.grid(name)[-1] == epochs and made.grid(name)[0] == 0
    assert len(SETTINGS) == 7


@pytest.mark.needs("scipy")
def test_each_switch_and_pick_once(finished):
    out, results = finished
    keys = [(e["seed"], e["setting"], e["switch"]) for e in results["runs"]]
    assert len(set(keys)) == len(keys)
    for seed in (0, 1):
        for setting, total, grid in (("base", 8, {0, 2, 8}), ("epochs-half", 4, {0, 1, 4})):
            full = studies.find(results, setting=setting, switch=total, seed=seed)
            assert full["picks"].keys() == {"slope45"}
            picks = {e for e in full["picks"].values() if e is not None}
            assert {k[2] for k in keys if k[:2] == (seed, setting)} == grid | picks
    assert make_plan((0, 1)).wanted({"runs": []}) == 12 <= len(keys)
    assert make_plan((0, 1)).wanted(results) == len(keys)
    assert "unfinished" not in studies.document(results).title
    # a pick off the grid does not stand for a switch epoch that is missing
    part = [e for e in results["runs"] if (e["seed"], e["setting"], e["switch"]) != (1, "base", 2)]
    title = studies.document({**results, "runs": part}).title
    assert title.endswith(f": {len(keys) - 1} of {len(keys)} runs, unfinished")
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


def test_picks_are_those_of_each_criterion_on_fulls_rotation(finished):
    for seed in (0, 1):
        full = studies.find(finished[1], setting="base", switch=EPOCHS, seed=seed)
        detector = CriticalPeriodDetector("slope45", EPOCHS)
        for epoch, value in enumerate(full["rotation"], 1):
            detector.step(value, epoch)
        assert full["picks"] == {"slope45": detector.end_epoch}


def test_what_watches_picks_too(tmp_path):
    """Criteria that are not of the rotation, from full's run, into which nothing else goes."""
    plan = make_plan(settings=("base",), watch="accuracy50,early_bird", eval_every=1)
    results = studies.run(plan, toy_data(), tmp_path)
    full = studies.find(results, switch=EPOCHS)
    last = RunFolder(tmp_path / "seed0/base" / f"switch{EPOCHS}").metrics()[-1]["criteria"]
    assert set(full["picks"]) == {"slope45", "accuracy50", "early_bird"}
    assert full["picks"] == {name: verdict["period_end"] for name, verdict in last.items()}
    assert full["picks"]["accuracy50"] is not None
    tried = {e["switch"] for e in results["runs"]}
    assert tried == {0, 2, EPOCHS, *(set(full["picks"].values()) - {None})}
    for switch in tried - {EPOCHS}:
        assert RunFolder(tmp_path / "seed0/base" / f"switch{switch}").config().watch is None


def test_criteria_that_are_added_appear_by_themselves(monkeypatch):
    monkeypatch.setattr(criteria, "_entries", dict(criteria._entries))

    @criteria.register("newest", source="a test")
    class Newest(Criterion):
        """Half of a turn."""

        of_rotation = True

        def judge(self, history, moment):
            return "turned" if history[-1].values[0] > 0.5 else None

    history = [(1, 0.3), (2, 0.6), (3, 0.7)]
    assert oracle.picks(history, 8) == {"slope45": None, "newest": 2}


@pytest.mark.parametrize("switch", [0, 2, "picked"])
def test_a_switch_equals_a_run_from_scratch(finished, tmp_path, switch):
    out, results = finished
    if switch == "picked":
        full = studies.find(results, setting="base", switch=EPOCHS, seed=0)
        switch = full["picks"]["slope45"]
        assert switch not in (None, 0, 2, EPOCHS)
    folder = out / "seed0/base" / f"switch{switch}"
    config = RunFolder(folder).config()
    assert_same_run(scratch(tmp_path / "run", config).path, folder)
    assert [line["repeats"] for line in metrics(folder)] == [3] * switch + [1] * (EPOCHS - switch)
    assert not config.energy and config.eval_every == EPOCHS


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


@pytest.mark.parametrize("epoch", [2, 3, 10])
def test_a_stop_within_a_run(finished, tmp_path, monkeypatch, epoch):
    real, calls = loop.train_epoch, []

    def killed(training, progress=None):
        calls.append(training.epoch)
        if len(calls) == epoch + 1:
            raise KeyboardInterrupt
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        studies.run(make_plan((0, 1)), toy_data(), tmp_path)
    results = studies.run(make_plan((0, 1)), toy_data(), tmp_path)
    assert calls[epoch] == calls[epoch + 1]
    assert essence(results) == essence(finished[1])


@pytest.mark.needs("matplotlib")
def test_a_full_run_that_diverges_keeps_the_switches_before(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if (
            training.config.method == "full"
            and training.config.repeats == 3
            and training.epoch == 3
        ):
            raise Diverged("training diverged: epoch 4")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = studies.run(make_plan(settings=["base"], switches=(2, 4)), toy_data(), tmp_path)
    reasons = {e["switch"]: e["diverged"] for e in results["runs"]}
    assert reasons == {
        8: "training diverged: epoch 4", 0: None, 2: None,
        4: "not run: full diverged before epoch 4",
    }  # fmt: skip
    text = told(results)
    assert "base, switch 8, seed 0: training diverged: epoch 4." in text
    draw(results, "oracle.png", tmp_path / "oracle.png")


def test_a_fork_that_is_missing_is_named(finished, tmp_path):
    out, results = finished
    made = make_plan((0, 1))
    store.open_results(made, TRAIN, tmp_path)
    full = studies.find(results, setting="base", switch=EPOCHS, seed=0)
    (tmp_path / "results.json").write_text(json.dumps({**results, "runs": [full]}))
    RunFolder(out / "seed0/base/switch0").fork(
        RunFolder(tmp_path / "seed0/base/switch0"), RunFolder(out / "seed0/base/switch0").config()
    )
    with pytest.raises(UserError, match=r"base/switch\d: missing, though full was forked into it"):
        studies.run(made, toy_data(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"setting": "base2"}, {"switch": 99}, {"picks": {"slope45": "x"}}, {"picks": None},
     {"forward_samples": 0}],
)  # fmt: skip
def test_results_with_a_wrong_value_are_named(finished, tmp_path, change):
    full = studies.find(finished[1], setting="base", switch=EPOCHS, seed=0)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**finished[1], "runs": [{**full, **change}]}))
    with pytest.raises(UserError, match=r"damaged .entry 1 of 'runs'"):
        studies.read_results(tmp_path)


@pytest.mark.parametrize(
    "key", ["setting_names", "switches", "setting", "switch", "picks", *store.ENTRY]
)
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


# --- regret


@pytest.mark.needs("scipy")
def test_a_seeds_oracle_is_chosen_by_the_others():
    accuracies = {
        0: {0: 0.70, 1: 0.60, 2: 0.62},
        2: {0: 0.71, 1: 0.80, 2: 0.66},  # best of all means, by seed 1
        4: {0: 0.60, 1: 0.70, 2: 0.74},
        8: {0: 0.72, 1: 0.65, 2: 0.65},
    }
    picks = {0: 4, 1: 4, 2: 2}
    (sweep,) = sweeps(made_up(accuracies, picks))
    # seed 0 by the means of 1 and 2: .61, .73, .72, .65; seed 1 by those of 0 and 2: .66, .685,
    # .67, .685, of equals the earlier; seed 2 by those of 0 and 1: .65, .755, .65, .685
    assert [regret.oracle(sweep, seed, sweep.common()) for seed in (0, 1, 2)] == [2, 2, 2]
    (found,) = regret.regrets(sweep)
    assert (found.criterion, found.picks, found.oracles) == ("slope45", [4, 4, 2], [2, 2, 2])
    assert found.regrets == pytest.approx([11.0, 10.0, 0.0])
    assert found.accuracies == pytest.approx([60.0, 70.0, 66.0])
    assert found.shares == pytest.approx([100 * 16 / 24, 100 * 16 / 24, 50.0])
    results = made_up(accuracies, picks)
    mean, settings = regret.overall(store.study_of(results), results)["slope45"]
    # t(0.975; 2) = 4.303, and the values 11, 10, 0 have the deviation 6.083
    assert settings == 1 and mean == pytest.approx((7.0, 4.3027 * 6.0828 / 3**0.5), rel=1e-3)


def test_no_more_samples_than_the_pick():
    accuracies = {
        0: {0: 0.5, 1: 0.6}, 2: {0: 0.7, 1: 0.4}, 4: {0: 0.65, 1: 0.7}, 8: {0: 0.9, 1: 0.8}
    }  # fmt: skip
    (found,) = regret.regrets(sweeps(made_up(accuracies, {0: 2, 1: 4}))[0])
    assert found.oracles == [8, 8]
    # seed 0 may use 0 and 2, of which seed 1 has 0 better; seed 1 0, 2, 4: by seed 0, 2
    assert found.cheap_oracles == [0, 2]
    assert found.regrets == pytest.approx([20.0, 10.0])
    assert found.cheap_regrets == pytest.approx([-20.0, -30.0])


def test_the_best_of_noise_is_no_regret():
    # One epoch is best in every seed but its own: the plain maximum would show a regret of 8.
    accuracies = {e: {s: 0.5 + 0.1 * (e == 2 * s) for s in range(5)} for e in range(0, 10, 2)}
    results = made_up(accuracies, dict.fromkeys(range(5), 8), total=8)
    (found,) = regret.regrets(sweeps(results)[0])
    assert sum(found.regrets) / 5 == pytest.approx(-2.0)


def test_with_one_seed_it_is_the_plain_maximum_and_said():
    accuracies = {0: {0: 0.5}, 2: {0: 0.9}, 8: {0: 0.6}}
    results = made_up(accuracies, {0: None})
    (found,) = regret.regrets(sweeps(results)[0])
    assert (found.picks, found.oracles) == ([8], [2])  # it never fired: full
    assert found.regrets == pytest.approx([30.0])
    text = told(results)
    assert "One seed: the oracle is the plain maximum of single runs" in text and "±" not in text


@pytest.mark.needs("scipy")
def test_a_setting_of_one_seed_is_not_judged_beside_others_of_two():
    accuracies = {0: {0: 0.5, 1: 0.6}, 2: {0: 0.9, 1: 0.8}, 8: {0: 0.6, 1: 0.7}}
    results = made_up(accuracies, {0: None, 1: None})
    results["setting_names"] = ["base", "decay-half"]
    results["runs"] += [{**e, "setting": "decay-half"} for e in results["runs"] if not e["seed"]]
    judged = regret.judge(sweeps(results))
    assert [r.setting for r in judged.found] == ["base"] and judged.by_others
    assert judged.skipped == ["decay-half"]
    text = told(results)
    assert "Not judged, with one complete seed and so no other to choose by: decay-half." in text
    assert "in the mean over 1 of 2 settings." in text


def test_picks_off_the_grid_are_judged_but_are_no_oracle():
    accuracies = {0: {0: 0.5, 1: 0.5}, 3: {0: 0.99}, 5: {1: 0.98}, 8: {0: 0.6, 1: 0.6}}
    (sweep,) = sweeps(made_up(accuracies, {0: 3, 1: 5}))
    assert sweep.common() == [0, 8]
    (found,) = regret.regrets(sweep)
    assert found.regrets == pytest.approx([-39.0, -38.0])


@pytest.mark.needs("matplotlib")
@pytest.mark.needs("scipy")
def test_table_and_pictures(finished, tmp_path):
    results = finished[1]
    made = studies.document(results)
    text = told(results)
    assert len(made.tables) == 2 and len(made.tables[0].rows) == 2
    assert "slope45: regret " in text and "slope45: capped regret " in text
    assert "in the mean over 2 of 2 settings." in text and "regrets are somewhat too small" in text
    assert "is best in the mean over the other seeds" in text
    assert " base " in text and "8 (full)" in text and "0 (k1)" in text
    assert made.markdown().count("\n| --- |") == 2
    draw(results, "oracle.png", tmp_path / "oracle.png")
    check_picture(tmp_path / "oracle.png", "#D55E00", "#000000", "#7F7F7F")
    part = {**results, "runs": results["runs"][:1]}
    draw(part, "oracle.png", tmp_path / "part.png")
    check_picture(tmp_path / "part.png", "#000000")
    assert "1 of 13 runs, unfinished" in told(part)
