"""The frontier: what is tuned on what, at which cost, against which curve, stops, workers."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from support.toy_comparison import (
    check_picture,
    damage,
    draw,
    drawn,
    essence,
    made_up,
    make_config,
    run_with_stops,
    told,
    toy_data,
)
from support.toy_training import toy_text

from cpfast import studies
from cpfast.moment import Moment
from cpfast.studies import store
from cpfast.studies.frontier import Frontier, cost, curve, folds, knobs, methods, tuning
from cpfast.studies.frontier.methods import AUTOPILOT, CONTROL, REFINED
from cpfast.studies.frontier.tuning import FINAL
from cpfast.train import autopilot
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = ("infobatch", "detector+batch")
EPOCHS = 6


def ordinary(**options):
    return make_config(
        **{
            "criterion": "slope45", "at": None, "repeats": 1, "detect": False,
            "schedule": "cosine", **options,
        }
    )  # fmt: skip


def make_plan(seeds=(0, 1), names=METHODS, **given):
    config = ordinary(epochs=EPOCHS)
    return Frontier(config, tuple(seeds), names, **{
        "budgets": (50, 100), "trials": 3, "control_trials": 3, "folds": 2, **given
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("frontier")
    return out, studies.run(make_plan(), toy_data(), out)


def of(results, **key):
    return [e for e in results["runs"] if all(e[name] == value for name, value in key.items())]


# --- what is run


@pytest.mark.slow
def test_each_trial_by_ever_fewer_folds_and_the_best_by_every_seed(finished):
    out, results = finished
    for arm in (CONTROL, REFINED, *METHODS):
        for budget in (50, 100):
            counts = [len(of(results, arm=arm, budget=budget, fold=fold)) for fold in (0, 1)]
            assert counts == [3, 2]
            if arm == REFINED:
                continue
            final = of(results, arm=arm, budget=budget, fold=FINAL)
            assert sorted(e["seed"] for e in final) == [0, 1]
            assert len({e["trial"] for e in final}) == len({e["epochs"] for e in final}) == 1
    assert make_plan().wanted(results) == len(results["runs"]) == 2 * (4 * 5 + 3 * 2)
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)
    assert not list(out.glob("seed*/*/trial*"))  # what was only tuned by
    assert len(list(out.glob("seed*/*/final"))) == 12


@pytest.mark.slow
def test_tuning_never_sees_the_test_data(tmp_path):
    """With other test data, the same trials have the same accuracies, and the same ones win."""
    data = toy_data()
    other = data.with_test(torch.arange(10))
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
    found = [
        studies.run(make_plan((0,), ("infobatch",), budgets=(100,)), given, tmp_path / str(number))
        for number, given in enumerate((data, other))
    ]
    tuned = [[e["test_accuracy"] for e in r["runs"] if e["fold"] != FINAL] for r in found]
    assert tuned[0] == tuned[1] and len(tuned[0]) == 15
    assert [e["trial"] for e in found[0]["runs"]] == [e["trial"] for e in found[1]["runs"]]


@pytest.mark.slow
def test_a_method_trains_for_as_much_as_the_control_does(finished):
    """To half an epoch of it."""
    for arm in METHODS:
        for budget in (50, 100):
            ours = cost.samples(of(finished[1], arm=CONTROL, budget=budget, fold=FINAL)[0])
            for entry in of(finished[1], arm=arm, budget=budget, fold=FINAL):
                assert abs(cost.samples(entry) - ours) <= cost.samples(entry) / entry["epochs"]


@pytest.mark.slow
def test_a_method_begins_from_the_best_control_of_its_budget(finished):
    out, results = finished
    study = make_plan()
    for budget in (50, 100):
        best: dict = {}
        for arm in (CONTROL, REFINED):  # its two rounds
            best = added(
                best, tuning.trials(study, arm)[tuning.winner(study, results, arm, budget)]
            )
        for entry in of(results, arm=CONTROL, budget=budget, fold=FINAL):
            assert entry["settings"] == pytest.approx(best)
        for entry in of(results, arm="infobatch", budget=budget):
            own = tuning.trials(study, "infobatch")[entry["trial"]]
            assert entry["settings"] == pytest.approx(added(best, own))
        config = RunFolder(out / "seed1" / f"infobatch@{budget}" / "final").config()
        factor = of(results, arm="infobatch", budget=budget, fold=FINAL)[0]["settings"]
        assert config.lr == pytest.approx(study.config.lr * factor.get("lr", 1.0))
        assert (config.policy, config.method, config.seed) == ("infobatch", "infobatch", 1)


def added(best, own):
    """Learning rates are factors."""
    both = {**best, **own}
    if "lr" in both:
        both["lr"] = best.get("lr", 1.0) * own.get("lr", 1.0)
    return both


@pytest.mark.slow
def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan(), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


@pytest.mark.slow
def test_several_workers_do_the_same(finished, tmp_path):
    runner = studies.Runner(make_plan(), toy_data(), tmp_path, workers=2)
    results = runner.run()
    keys = list(Frontier.KEY)
    by_key = [
        sorted(essence(r), key=lambda e: [str(e[name]) for name in keys])
        for r in (results, finished[1])
    ]
    assert by_key[0] == by_key[1]


@pytest.mark.slow
def test_more_methods_budgets_and_seeds_may_be_asked_for(finished, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(finished[1]))
    plan = make_plan((0, 1, 2), (*METHODS, "freeze"), budgets=(50, 100))
    results = studies.run(plan, toy_data(), tmp_path)
    assert results["runs"][: len(finished[1]["runs"])] == finished[1]["runs"]
    assert len(results["runs"]) == plan.wanted(results) == 2 * (5 * 5 + 4 * 3)


@pytest.mark.slow
def test_a_method_that_cannot_be_trained_is_refused_before_any_is(tmp_path):
    plan = make_plan(names=("infobatch", "resolution"))  # images of 6x6 become 3x3
    with pytest.raises(UserError, match="--method resolution: cnn cannot run at"):
        studies.run(plan, toy_data(), tmp_path)
    assert {e["arm"] for e in studies.read_results(tmp_path)["runs"]} == {CONTROL, REFINED}


@pytest.mark.slow
@pytest.mark.parametrize("key", ["methods", "trials", "arm", "fold", "settings", "seconds"])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


# --- tuning


def tuned(accuracies):
    """By (arm, trial): of folds 0 and 1 at budget 100, of which the second may be missing."""
    return made_up(
        make_plan((0,)),
        [
            ({"arm": arm, "budget": 100, "trial": trial, "fold": fold, "seed": 0}, value)
            for (arm, trial), values in accuracies.items()
            for fold, value in enumerate(values)
        ],
    )


def test_the_better_half_goes_on():
    study, results = make_plan((0,)), tuned({(CONTROL, 0): [0.5], (CONTROL, 1): [0.7],
                                             (CONTROL, 2): [0.6]})  # fmt: skip
    assert tuning.left(study, results, CONTROL, 100, 0) == [0, 1, 2]
    assert tuning.left(study, results, CONTROL, 100, 1) == [1, 2]
    results = tuned({(CONTROL, 0): [0.9], (CONTROL, 1): [0.7, 0.1], (CONTROL, 2): [0.6, 0.6]})
    assert tuning.left(study, results, CONTROL, 100, 1) == [0, 1]
    results = tuned({(CONTROL, 0): [0.5], (CONTROL, 1): [0.7, 0.1], (CONTROL, 2): [0.6, 0.6]})
    assert tuning.winner(study, results, CONTROL, 100) == 2


def test_of_equals_the_lower_loss_and_then_the_defaults():
    results = tuned({(CONTROL, trial): [0.5, 0.5] for trial in range(3)})
    assert tuning.winner(make_plan((0,)), results, CONTROL, 100) == 0
    for entry in results["runs"]:
        entry["test_loss"] = {0: 0.7, 1: 0.7, 2: 0.6}[entry["trial"]]
    assert tuning.winner(make_plan((0,)), results, CONTROL, 100) == 2
    assert tuning.left(make_plan((0,)), results, CONTROL, 100, 1) == [0, 2]


def test_what_diverged_is_not_chosen():
    results = tuned({(CONTROL, 0): [0.5, 0.5], (CONTROL, 1): [0.2, 0.2], (CONTROL, 2): [0.1]})
    results["runs"][0]["diverged"] = "it did"
    assert tuning.winner(make_plan((0,)), results, CONTROL, 100) == 1


def test_what_a_trial_cost_decides_its_epochs():
    """The first is guessed; the others are guessed and corrected by it; then each is measured."""
    study = make_plan((0,), ("infobatch",), trials=2, control_trials=2)
    results = tuned({
        (arm, trial): [value] * 2
        for arm in (CONTROL, REFINED) for trial, value in ((0, 0.5), (1, 0.4))
    })  # fmt: skip
    for entry in results["runs"]:
        entry |= {"epochs": 6, "backward_samples": 600, "forward_samples": 600}

    def epochs(trial, **final):
        return tuning.configured(study, results, "infobatch", 100, trial, **final).epochs

    guesses = {}
    for trial in (0, 1):
        changes = tuning.settings(study, results, "infobatch", 100, trial)
        guesses[trial] = cost.guess(tuning._with_method(study, "infobatch", changes, EPOCHS))
        assert epochs(trial) == round(EPOCHS / guesses[trial])
    key = {"arm": "infobatch", "budget": 100, "trial": 0, "fold": 0, "seed": 0}
    first = made_up(study, [(key, 0.5)])["runs"][0]
    first |= {"epochs": 10, "backward_samples": 900, "forward_samples": 900}
    results["runs"].append(first)  # .9 of the control's, an epoch
    assert epochs(0) == round(EPOCHS / 0.9)
    assert epochs(1) == max(1, round(EPOCHS / (guesses[1] * 0.9 / guesses[0])))
    results["runs"].append({**first, "fold": 1, "backward_samples": 700, "forward_samples": 700})
    assert epochs(0) == round(EPOCHS / 0.9)  # a fold's runs are of one length
    assert epochs(0, final=True) == round(EPOCHS / 0.8)


def test_the_guess_is_by_the_recipe():
    config = ordinary(epochs=12)
    for name, settings, expected in [
        ("volume", {"volume.budget": 0.7, "volume.slope": -1.0}, 0.7),
        ("detector", {"detector.repeats": 3}, (4 * 3 + 8) / 12),
        ("infobatch", {"infobatch.keep": 0.3, "infobatch.anneal": 0.75}, (9 * 0.3 + 3) / 12),
        ("batch", {}, 1.0),
        ("tokens", {"tokens.keep": 0.3}, 1.0),
    ]:
        made = methods.with_method(config, name, settings)
        assert cost.guess(made) == pytest.approx(expected, abs=1e-3), name


def test_each_sample_is_held_out_once():
    data = toy_data()
    parts = [folds.fold(data, number) for number in range(folds.FOLDS)]
    held = torch.cat([part.test_images.flatten(1) for part in parts])
    assert sorted(held.tolist()) == sorted(data.train_images.flatten(1).tolist())
    assert all(part.train_size + part.test_size == data.train_size for part in parts)


def test_a_warp_is_a_share_of_the_epochs():
    config = ordinary()
    for text, epochs, expected in [
        ("2@0.3", 20, "2@6"), ("3@0.5", 20, "3@9"), ("2@0.3", 2, None), (None, 20, None),
        ("3@0.5", 1, None),
    ]:  # fmt: skip
        made = knobs.configured(config, {"warp": text, "lr": 2.0}, epochs)
        assert (made.warp, made.epochs, made.lr) == (expected, epochs, 2 * config.lr)


def test_augmentation_is_tuned_of_images():
    assert set(knobs.of_control("images")) - set(knobs.of_control("text")) == {"augment"}
    made = knobs.configured(ordinary(), {"augment": "none"}, 4)
    assert made.augment == "none" and knobs.configured(ordinary(), {}, 4).augment == "paper"
    assert knobs.words({"augment": "none", "lr": 0.5}) == "augment none, lr x 0.5"


# --- methods


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in methods.parts() if name != AUTOPILOT),
        "resolution+infobatch",
        "detector+freeze",
    ],
)
def test_every_part_makes_a_recipe_with_every_value_of_its_knobs(name):
    config = ordinary(epochs=20)
    known = methods.parts()
    own = {
        f"{part}.{knob}": values
        for part in name.split("+") for knob, values in known[part].knobs.items()
    }  # fmt: skip
    for knob, values in own.items():
        for value in values:
            made = methods.with_method(config, name, {knob: value})
            possible = [made.recipe().settings(Moment(e, 20, 7 if e >= 7 else None))
                        for e in range(20)]  # fmt: skip
            assert possible
    assert methods.with_method(config, name, {}) == methods.with_method(
        config, name, {knob: values[0] for knob, values in own.items()}
    )


def test_what_is_augmented_in_the_beginning_is_so_whatever_the_control_is():
    plain = ordinary(epochs=10).replace(augment="none")
    for name in ("early-augment", "resolution+early-augment"):
        made = methods.with_method(plain, name, {})
        assert made.augment == "paper"
        assert [made.recipe().settings(Moment(e, 10, None)).augment for e in (0, 9)] == [1.0, 0.0]
        other = methods.with_method(plain, name, {"early-augment.augment": "crop-flip"})
        assert other.augment == "crop-flip"


def test_parts_are_added_up():
    config = ordinary(epochs=10)
    made = methods.with_method(
        config, "resolution+infobatch", {"resolution.share": 0.75, "infobatch.keep": 0.3}
    )
    assert (made.policy, made.detect) == ("infobatch", False)
    first = made.recipe().settings(Moment(0, 10, None))
    assert (first.resolution, first.prune) == (0.75, True) and first.keep == pytest.approx(0.3)
    assert methods.with_method(config, "detector:accuracy50", {}).criterion == "accuracy50"
    assert methods.with_method(config, "freeze+batch", {}).detect


def test_methods_by_the_kind_of_data():
    images, text = (methods.all_parts(reads) for reads in ("images", "text"))
    assert {"resolution"} < set(images) - set(text)
    assert set(text) - set(images) == {"length", "tokens"}
    assert set(images) | set(text) == set(methods.parts())
    for reads, names in (("images", images), ("text", text)):
        used = {part for name in methods.default_methods(reads) for part in name.split("+")}
        assert "retuned" in used and used < set(names)


def test_of_text(tmp_path):
    """Shorter sequences pay for more epochs; fewer tokens of whole ones for none."""
    config = ordinary(epochs=EPOCHS, data="python-docs", model="transformer", lr=1e-3)
    study = Frontier(
        config, (0,), ("length", "tokens"), (100,), trials=1, control_trials=1, folds=1
    )
    results = studies.run(study, toy_text(), tmp_path)
    control, length, tokens = (
        of(results, arm=arm, fold=FINAL)[0] for arm in (CONTROL, "length", "tokens")
    )
    assert tokens["epochs"] == control["epochs"] == EPOCHS < length["epochs"]
    assert tokens["flops"] == control["flops"] and tokens["test_loss"] != control["test_loss"]
    assert 0.8 < length["flops"] / control["flops"] < 1.1


def test_retuned_is_the_control(tmp_path):
    """To the bit, where nothing is tuned: what else it has is what tuning gains."""
    plan = make_plan((0,), ("retuned",), trials=1, control_trials=1, budgets=(100,))
    runs = studies.run(plan, toy_data(), tmp_path)["runs"]
    control, retuned = (of({"runs": runs}, arm=arm) for arm in (CONTROL, "retuned"))
    assert len(control) == len(retuned) == 1
    for key in ("test_accuracy", "test_loss", "train_loss", "epochs", "forward_samples", "flops"):
        assert control[0][key] == retuned[0][key]


def test_the_autopilot_is_not_tuned(tmp_path):
    plan = make_plan((0,), (AUTOPILOT,), trials=3, budgets=(50, 200))
    results = studies.run(plan, toy_data(), tmp_path)
    runs = of(results, arm=AUTOPILOT)
    assert [e["fold"] for e in runs] == [FINAL, FINAL]
    assert sorted(e["epochs"] for e in runs) == [EPOCHS // 2, EPOCHS * 2]
    assert len(results["runs"]) == plan.wanted(results)
    at_50 = Config(**autopilot.within(plan.config.to_dict(), (), 50, 6))
    assert at_50.augment == "none"  # images of 6x6, for three epochs
    made = RunFolder(tmp_path / "seed0" / f"{AUTOPILOT}@50" / "final").config()
    assert made == at_50.replace(eval_every=EPOCHS // 2, save_every=EPOCHS // 2)


def test_the_autopilot_has_an_epoch_where_the_control_has_one():
    plan = make_plan((0,), (AUTOPILOT,), budgets=(5, 30))
    for budget in plan.budgets:
        made = methods.with_autopilot(plan.config, budget, 32)
        assert 1 <= made.epochs <= plan.epochs(budget)


@pytest.mark.needs("scipy")
def test_what_the_autopilot_loses_is_said():
    results_of_all = results_of(
        final(CONTROL, 100, [0.60, 0.61]), final(AUTOPILOT, 100, [0.59, 0.60]),
        final("infobatch", 100, [0.62, 0.63]), budgets=(100,), seeds=(0, 1),
        names=(AUTOPILOT, "infobatch"),
    )[1]  # fmt: skip
    assert "having been looked for: 3.00 at 100 % (to infobatch)." in told(results_of_all)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("infobach",), "--methods: no 'infobach'; there are autopilot, "),
        (("autopilot+batch",), "--methods autopilot\\+batch: autopilot is nothing to add to"),
        (("infobatch+random",), "--methods infobatch\\+random: infobatch and random both choose"),
        (("volume+random",), "volume and random both choose"),
        (("freeze+freeze",), "freeze twice"),
        (("length",), "--methods length: length is for text"),
        (("tokens",), "--methods tokens: tokens is for text"),
        (("detector+detector:accuracy50",), "two detectors"),
    ],
)
def test_what_is_no_method_is_refused(names, said):
    with pytest.raises(UserError, match=said):
        make_plan(names=names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budgets": (0,)}, r"--budgets must be in 1 .. 1000 \(percent\), got 0"),
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"control_trials": 0}, "--control-trials must be at least 1, got 0"),
        ({"folds": 6}, "--folds must be in 1 .. 5, got 6"),
    ],
)
def test_what_is_out_of_range_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        make_plan(**given)


def test_drawn_settings_do_not_depend_on_how_many_there_are():
    few, many = (knobs.draw(knobs.of_control("images"), count, 0, "control") for count in (4, 16))
    assert few == many[:4] and few[0] == {}
    assert few != knobs.draw(knobs.of_control("images"), 4, 1, "control")
    assert len({json.dumps(one) for one in many}) == 16
    left = sum(len(knobs.of_control("images")) - len(one) for one in many[1:]) / 15
    assert 3 < left < 5  # of 8, as they are


def test_the_control_has_trials_of_its_own():
    study = make_plan(trials=2, control_trials=5)
    assert [len(tuning.trials(study, arm)) for arm in (CONTROL, *METHODS)] == [5, 2, 2]
    assert study.wanted({"runs": []}) == 2 * ((5 + 3) + 3 * 2 + 3 * 2)


def test_no_setting_is_tried_that_is_the_default():
    """It would be a trial twice."""
    for name in methods.parts():
        if name != AUTOPILOT:
            first, *others = knobs.draw(methods.knobs_of(name), 100, 0, name)
            given = ordinary().replace(epochs=20)
            plain = methods.with_method(given, name, first)
            assert others and all(
                "lr" in one or methods.with_method(given, name, one) != plain for one in others
            )
    assert 1.0 not in knobs.METHOD["lr"] and 1.0 not in knobs.CONTROL["lr"]


# --- the curve


def final(arm, budget, accuracies, samples=None, seconds=None):
    runs = [
        ({"arm": arm, "budget": budget, "trial": 0, "fold": FINAL, "seed": seed}, value)
        for seed, value in enumerate(accuracies)
    ]
    entries = made_up(make_plan(), runs)["runs"]
    for entry in entries:
        count = samples or 10 * budget
        entry |= {"backward_samples": count, "forward_samples": count, "settings": {}}
        entry["seconds"] = seconds or count / 100
    return entries


def results_of(*entries, seeds=(0, 1, 2), **given):
    study = make_plan(seeds, **given)
    return study, {**made_up(study, []), "runs": [e for group in entries for e in group]}


@pytest.mark.needs("scipy")
def test_a_method_is_held_against_the_control_of_its_cost():
    study, results = results_of(
        final(CONTROL, 50, [0.50, 0.52, 0.54]),
        final(CONTROL, 100, [0.60, 0.64, 0.68]),
        # half way in the logarithm; each 2 points above its seed's curve, and one of them 3
        final("infobatch", 100, [0.57, 0.60, 0.64], samples=round(500 * math.sqrt(2))),
    )
    one = next(d for d in curve.distances(study, results) if d.arm == "infobatch")
    halfway = [55.0, 58.0, 61.0]
    gains = [57.0 - halfway[0], 60.0 - halfway[1], 64.0 - halfway[2]]
    assert one.gain.mean == pytest.approx(np.mean(gains), abs=0.01)
    error = np.std(gains, ddof=1) / math.sqrt(3)
    assert one.gain.half == pytest.approx(4.3027 * error, rel=0.02)
    # Student's t of two degrees of freedom, in closed form
    t = np.mean(gains) / error
    assert one.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=0.05)
    assert one.visible == pytest.approx((4.3027 + 1.0607) * error, rel=0.02)
    # the mean curve goes from 52 to 64 points
    needed = 500 * 2 ** ((60.333 - 52) / 12)
    assert one.relative == pytest.approx(500 * math.sqrt(2) / needed, rel=0.01)


@pytest.mark.needs("scipy")
def test_what_costs_less_than_the_cheapest_control_is_held_against_that():
    control = [final(CONTROL, 50, [0.5, 0.5]), final(CONTROL, 100, [0.6, 0.6])]
    for samples, gain in ((400, 2.0), (370, None)):
        study, results = results_of(
            *control, final("infobatch", 50, [0.52, 0.52], samples=samples), seeds=(0, 1)
        )
        one = next(d for d in curve.distances(study, results) if d.arm == "infobatch")
        assert (None if one.gain is None else pytest.approx(one.gain.mean)) == gain


@pytest.mark.needs("scipy")
def test_nothing_is_said_where_no_control_was_run():
    study, results = results_of(
        final(CONTROL, 50, [0.5, 0.5]), final(CONTROL, 100, [0.6, 0.6]),
        final("infobatch", 100, [0.7, 0.7], samples=2000), seeds=(0, 1),
    )  # fmt: skip
    one = next(d for d in curve.distances(study, results) if d.arm == "infobatch")
    assert one.gain is None and one.p is None and one.relative is None
    assert "nothing is said of any" in told(results)


@pytest.mark.needs("scipy")
def test_what_is_above_and_what_is_below_is_said():
    study, results = results_of(
        final(CONTROL, 50, [0.50, 0.51, 0.52]),
        final(CONTROL, 100, [0.60, 0.61, 0.62]),
        final("infobatch", 100, [0.63, 0.6401, 0.65]),
        final("detector+batch", 50, [0.48, 0.4901, 0.50]),
    )
    assert len(study.budgets) == 2
    overview, every, _ = studies.document(results).tables
    assert overview.header == ("points over the control", "50 %", "100 %", "mean")
    assert overview.rows == [
        ("control, accuracy %", "51.00 ± 2.48", "61.00 ± 2.48", ""),
        ("infobatch", "", "+3.00 ± 0.01*", "+3.00 ± 0.01"),
        ("detector+batch", "-2.00 ± 0.01*", "", "-2.00 ± 0.01"),
    ]
    assert [row[:2] for row in every.rows] == [
        ("50", CONTROL), ("50", "detector+batch"), ("100", CONTROL), ("100", "infobatch"),
    ]  # fmt: skip
    text = told(results)
    said = "the control's curve, at a level of 0.05 over all 2 comparisons:"
    assert f"Seen above {said} infobatch at 100 % (+3.00 ± 0.01 points)." in text
    assert f"Seen below {said} detector+batch at 50 % (-2.00 ± 0.01 points)." in text


@pytest.mark.needs("scipy")
def test_a_control_that_did_worse_for_more_is_no_yardstick():
    """Who may spend more need not."""
    study, results = results_of(
        final(CONTROL, 50, [0.60, 0.62, 0.64]),
        final(CONTROL, 100, [0.59, 0.60, 0.61]),
        final("infobatch", 50, [0.61, 0.63, 0.65]),
        final("infobatch", 100, [0.63, 0.65, 0.68]),
        final("retuned", 100, [0.59, 0.60, 0.61]),
        names=("infobatch", "retuned"),
    )
    assert curve.yardsticks(study, results) == {50: 50, 100: 50}
    gains = {(d.arm, d.budget): d.gains for d in curve.distances(study, results)}
    assert gains["infobatch", 100] == pytest.approx({0: 3.0, 1: 3.0, 2: 4.0})
    assert gains["retuned", 100] == pytest.approx({0: -1.0, 1: -2.0, 2: -3.0})
    for seconds in (5.0, 7.5, 10.0):
        assert curve.at(curve.control(study, results, "seconds")[0], seconds) == 60.0
    said = "At 100 % the control has less than at 50 %, and methods are held against that."
    assert said in told(results)
    # and not where more is better
    study, results = results_of(final(CONTROL, 50, [0.60]), final(CONTROL, 100, [0.61]), seeds=(0,))
    assert curve.yardsticks(study, results) == {50: 50, 100: 100}
    assert "has less than" not in told(results)


def test_a_mean_over_budgets_is_paired_by_seed():
    """What one budget gains on a seed and another loses on it is no spread."""
    study, results = results_of(
        final(CONTROL, 50, [0.50, 0.50, 0.50]), final(CONTROL, 100, [0.60, 0.60, 0.60]),
        final("infobatch", 50, [0.51, 0.52, 0.53]), final("infobatch", 100, [0.64, 0.63, 0.62]),
    )  # fmt: skip
    of_both = [d for d in curve.distances(study, results) if d.arm == "infobatch"]
    assert curve.over_budgets(of_both) == pytest.approx([2.5, 2.5, 2.5])
    fewer = [dataclasses.replace(of_both[0], gains={0: 1.0}), of_both[1]]
    assert curve.over_budgets(fewer) == pytest.approx([2.5]) and curve.over_budgets([]) == []


def test_holm_corrects_for_all():
    assert curve.holm([0.02, 0.5, None]) == [0.04, 0.5, None]
    assert curve.holm([0.9, 0.8]) == [1.0, 1.0]


def test_operations_count_where_all_runs_have_them():
    study, results = results_of(final(CONTROL, 100, [0.6]), seeds=(0,), budgets=(100,))
    assert curve.currency_of(results) == "samples"
    for entry in results["runs"]:
        entry["flops"] = 5e9
    assert curve.currency_of(results) == "flops"
    assert curve.control(study, results, "flops") == {0: [(5e9, 60.0)]}


def test_a_sample_that_is_only_scored_counts_a_third():
    assert cost.samples({"backward_samples": 90, "forward_samples": 120}) == 100


@pytest.mark.slow
@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "frontier.png", tmp_path / "all.png")
    check_picture(tmp_path / "all.png", "#000000", "#D55E00", "#0072B2")
    finals = [e for e in finished[1]["runs"] if e["fold"] == FINAL]
    draw({**finished[1], "runs": finals[:1]}, "frontier.png", tmp_path / "part.png")
    draw({**finished[1], "runs": []}, "frontier.png", tmp_path / "none.png")
    assert store.has_curves(finished[1])


@pytest.mark.needs("scipy")
def test_the_picture_of_one_budget_has_a_row_a_method(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    _, results = results_of(
        final(CONTROL, 100, [0.60, 0.61, 0.62]), final("infobatch", 100, [0.63, 0.64, 0.66]),
        final("detector+batch", 100, [0.58, 0.59, 0.61]), budgets=(100,),
    )  # fmt: skip
    draw(results, "frontier.png", tmp_path / "one.png")
    rows = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert rows == ["detector+batch", "infobatch"]
    check_picture(tmp_path / "one.png", "#0072B2", "#000000")
    draw({**results, "runs": []}, "frontier.png", tmp_path / "none.png")
