"""What is asked of a study, and refused."""

import argparse
import math

import pytest

from cpfast.pruning import policies
from cpfast.studies import studies
from cpfast.studies.compare import arms
from cpfast.studies.early_phase.study import CHANGES
from cpfast.studies.frontier.methods import all_parts
from cpfast.train.errors import UserError


def plan(study, **given):
    """What these options make, the others not given."""
    parser = argparse.ArgumentParser()
    studies[study].factory.add_options(parser)
    own = vars(parser.parse_args([]))
    assert set(own.values()) <= {None}
    options = {**own, "seeds": None, "epochs": 20, "device": "cpu", **given}
    return studies[study].factory.from_options(options)


def test_a_comparison():
    made = plan("compare")
    assert (made.arms, made.at, made.seeds, made.budgets) == (arms.DEFAULT, 3, (0, 1, 2), ())
    made = plan("compare", seeds=1, arms="k1, fixed,", at=7, budgets=[], keep=0.3)
    assert made.arms[:3] == ("full", "k1", "fixed") and "rs2@60" in made.arms
    assert (made.at, made.budgets, made.config.keep) == (7, arms.BUDGETS, 0.3)
    assert made.config.criterion == "slope45" and made.config.at is None
    made = plan("compare", criterion="fixed", at=7)
    assert (made.config.at, made.at) == (7, 7)


def test_a_frontier_of_all_methods():
    assert plan("frontier", data="digits", methods="all").methods == all_parts("images")
    assert plan("frontier", data="stdlib", methods=" all").methods == all_parts("text")
    assert plan("frontier", data="digits", methods="freeze,batch").methods == ("freeze", "batch")


def test_a_frontiers_control_has_three_times_as_many_trials():
    for given, trials in (
        ({}, (8, 24)), ({"trials": 2}, (2, 6)), ({"trials": 2, "control_trials": 7}, (2, 7))
    ):  # fmt: skip
        made = plan("frontier", data="digits", **given)
        assert (made.trials, made.control_trials) == trials


def test_an_arm_of_a_budget_by_its_name():
    made = plan("compare", arms="k1@20,rs2@50", budgets=[60])
    assert made.budgets == (20, 50, 60)
    assert [a for a in made.arms if "@" in a] == [
        "k1@20", "rs2@50", "shortened@60", "rs2@60", "k1@60",
    ]  # fmt: skip


def test_a_reference_goes_with_arms_that_choose_tokens(tmp_path):
    file = tmp_path / "losses"
    file.touch()
    text = {"data": "python-docs", "reference": str(file)}
    assert plan("compare", **text, repeats=3, arms="k1+tokens").config.reference == str(file)
    with pytest.raises(
        UserError, match=r"tokens, k1\+tokens, detector\+tokens; got --arms full,k1$"
    ):
        plan("compare", **text, repeats=3, arms="k1")
    # with one repeat k1+tokens is tokens
    with pytest.raises(UserError, match=r"tokens, detector\+tokens; got --arms full,aum$"):
        plan("compare", **text, arms="aum")


def test_a_comparison_of_one_repeat_has_the_arms_that_are_not_full():
    pruned = {name for name in policies if name not in ("random", "tokens")}
    expected = {"full", "detector+rs2", *pruned, *(f"detector+{name}" for name in pruned)}
    assert set(plan("compare", repeats=1).arms) == expected


def test_an_oracle_sweep_of_other_criteria():
    assert plan("oracle").config.watch is None
    assert plan("oracle", watch="accuracy50,early_bird").config.watch == "accuracy50,early_bird"
    with pytest.raises(UserError, match="--watch must be one of all, "):
        plan("oracle", watch="acuracy50")


def test_an_oracle_sweep():
    assert plan("oracle", oracle_settings="base, base").setting_names == ("base",)
    made = plan("oracle", oracle_settings="base,epochs-half", switch_epochs=[4])
    assert made.grid("base") == [0, 4, 20] and made.grid("epochs-half") == [0, 2, 10]


def test_a_falsification():
    made = plan("falsify", seeds=2, batch_factors=[1.0, 4.0])
    assert (made.batch_factors, made.decay_factors) == ((1.0, 4.0), (0.5, 1.0, 2.0))
    assert made.seeds == (0, 1)


def test_only_a_comparison_is_metered():
    assert plan("compare").config.energy
    assert not plan("oracle").config.energy and not plan("falsify").config.energy


def test_deficits():
    made = plan("deficit", deficits="blur,noise", window=3)
    assert made.deficits == ("blur", "noise")
    assert (made.removals, made.onsets) == ((5, 10, 20), (0, 10, 20))
    assert made.spans() == [(0, 3), (0, 5), (0, 10), (0, 20), (10, 13), (20, 23)]
    assert (made.config.repeats, made.config.schedule) == (1, "constant")
    longest = made.configured(7)
    assert (longest.epochs, longest.eval_every, longest.seed) == (43, 1, 7)
    assert plan("deficit", epochs=None).config.epochs == 28


def test_a_warm_start():
    made = plan("warm-start", shrinks=[0.5, 0.1], epochs=None)
    assert (made.shrinks, made.noise, made.share, made.augment) == ((0.1, 0.5), 0.1, 0.5, False)
    assert made.arms() == ["first", "scratch", "warm", "shrink0.1", "shrink0.5"]
    assert (made.config.repeats, made.config.epochs, len(made.seeds)) == (1, 48, 5)


def test_windows_of_regularisation():
    made = plan("window", epochs=None)
    assert (made.config.epochs, made.config.weight_decay, made.config.repeats) == (40, 5e-4, 1)
    assert (made.regularisers, made.switches) == (("decay", "augmentation"), (5, 10, 20, 30))
    assert made.windows() == [(0, 10), (5, 15), (10, 20), (20, 30), (30, 40)]
    made = plan("window", regularisers="decay", switches=[15, 5], window=4, weight_decay=0.1)
    assert (made.switches, made.config.weight_decay) == ((5, 15), 0.1)
    assert made.spans() == [(0, 0), (0, 4), (0, 5), (0, 15), (5, 9), (5, 20), (15, 19), (15, 20)]


def test_an_early_phase():
    made = plan("early-phase", epochs=None)
    assert (made.config.epochs, made.rewinds, made.iterations) == (40, (1, 3, 10), 80)
    assert made.perturbations == CHANGES
    assert CHANGES[:4] == ("magnitudes", "layer", "filter", "noise")
    assert CHANGES[4:] == ("initial", "blur", "rotation", "blur+rotation")
    made = plan("early-phase", perturbations="noise", rewinds=[4, 2, 4], iterations=3)
    assert (made.perturbations, made.rewinds, made.iterations) == (("noise",), (2, 4), 3)


def test_an_enlightenment_period():
    made = plan("enlightenment", epochs=None)
    assert (made.strategies, made.lengths) == (("pause", "boost", "removal"), (2, 4, 8, 16))
    assert (made.alpha, made.boost, made.removed) == (0.2, 0.8, 0.1)
    assert (made.config.epochs, made.config.repeats, made.config.eval_every) == (32, 1, 32)
    assert [run[1:] for run in made.runs() if run.arm == "pause"] == [
        (0, 16), (0, 8), (0, 4), (0, 2), (14, 16), (12, 16), (8, 16)
    ]  # fmt: skip
    made = plan(
        "enlightenment", strategies="removal,pause", lengths=[9, 3, 9], removed=0.3, eval_every=2
    )
    assert (made.strategies, made.lengths, made.removed) == (("removal", "pause"), (3, 9), 0.3)
    assert made.config.eval_every == 2
    assert plan("enlightenment", epochs=2, strategies="pause").lengths == (1,)


@pytest.mark.parametrize(
    ("study", "given", "message"),
    [
        ("enlightenment", {"strategies": "mixup"}, "must be of pause, boost, removal; got 'mixup'"),
        ("enlightenment", {"strategies": ","}, "--strategies: no name in ','"),
        ("enlightenment", {"lengths": [20]}, "--lengths must be in 1 .. 19, got 20"),
        ("enlightenment", {"lengths": [0, 3]}, "--lengths must be in 1 .. 19, got 0"),
        ("enlightenment", {"lengths": [1]}, "--lengths 1: removal needs one of 2 or more epochs"),
        ("enlightenment", {"alpha": 0.0}, "--alpha must be positive, got 0.0"),
        ("enlightenment", {"alpha": math.nan}, "--alpha must be positive, got nan"),
        ("enlightenment", {"boost": 0.2}, "--boost must be above --alpha, 0.2, got 0.2"),
        ("enlightenment", {"boost": math.inf}, "--boost must be above --alpha, 0.2, got inf"),
        ("enlightenment", {"removed": 1.0}, "--removed must be in (0, 1), got 1.0"),
        ("enlightenment", {"epochs": 1}, "--epochs must be at least 2"),
        ("enlightenment", {"data": "python-docs"}, "--data python-docs: this study is of images"),
        ("early-phase", {"perturbations": "zero"}, "--perturbations: must be of magnitudes, layer"),
        ("early-phase", {"rewinds": [20]}, "--rewinds must be in 1 .. 19, got 20"),
        ("early-phase", {"iterations": 0}, "--iterations must be at least 1, got 0"),
        ("window", {"regularisers": "dropout"}, "must be of decay, augmentation; got 'dropout'"),
        ("window", {"switches": [20]}, "--switches must be in 1 .. 19, got 20"),
        ("window", {"window": 0}, "--window must be in 1 .. 19, got 0"),
        ("window", {"epochs": 1}, "--epochs must be at least 2"),
        ("warm-start", {"shrinks": [0.0]}, "--shrinks must be in (0, 1], got 0.0"),
        ("warm-start", {"noise": math.nan}, "--noise must be in [0, 1], got nan"),
        ("warm-start", {"share": 1.0}, "--share must be in (0, 1), got 1.0"),
        ("deficit", {"deficits": "fog"}, "--deficits: must be of blur, flip, permutation, noise"),
        ("deficit", {"removals": [0]}, "--removals must be at least 1, got 0"),
        ("deficit", {"window": 0}, "--window must be at least 1, got 0"),
        ("deficit", {"removals": [], "onsets": []}, "--removals, --onsets: no epoch at all"),
        ("deficit", {"data": "python-docs"}, "--data python-docs: this study is of images"),
        ("compare", {"seeds": 0}, "--seeds must be at least 1, got 0"),
        ("compare", {"arms": "k3"}, "--arms: no arm 'k3'; there are full,"),
        ("compare", {"arms": " , "}, "--arms: no name in ' , '"),
        ("compare", {"arms": ""}, "--arms: no name in ''"),
        ("compare", {"arms": "k1@101"}, "no arm 'k1@101'; there are full,"),
        ("oracle", {"seeds": 2**33}, "--seeds 8589934592: from --seed 0 on they leave 0 .. 2**32"),
        ("compare", {"at": 21}, "--at must be in 1 .. 20 (--epochs), got 21"),
        ("compare", {"budgets": [0]}, "--budgets must be in 1 .. 100 (percent), got 0"),
        (
            "compare",
            {"repeats": 1, "arms": "k1"},
            "--repeats 1 no other than the rest; choose from full, ",
        ),
        ("falsify", {"epoch_factors": [1e308]}, "positive, and 1000 at most; got 1e+308"),
        ("falsify", {"decay_factors": [math.nan]}, "1000 at most; got nan"),
        (
            "falsify",
            {"batch_factors": [0.0]},
            "--batch-factors must be positive, and 1000 at most; got 0.0",
        ),
        ("falsify", {"labels": "random"}, "--labels random: falsify has both; leave it out"),
        ("falsify", {"criterion": "fixed"}, "--criterion fixed: it is not of the mean rotation"),
        ("oracle", {"criterion": "fixed"}, "--criterion fixed: it is not of the mean rotation"),
        ("oracle", {"oracle_settings": "lr"}, "--oracle-settings: must be of base, decay-"),
        ("oracle", {"switch_epochs": [21]}, "--switch-epochs must be in 0 .. 20"),
        ("oracle", {"repeats": 1}, "--repeats 1: there is nothing to switch"),
    ],
)
def test_bad_options(study, given, message):
    with pytest.raises(UserError) as error:
        plan(study, **given)
    assert message in str(error.value)
