"""An enlightenment period: the order of outputs, what is trained on when, what is held against
what, stops."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from support.toy_comparison import (
    check_picture,
    damage,
    draw,
    essence,
    made_up,
    make_config,
    metrics,
    run_with_stops,
    told,
    toy_data,
)

from cpfast import studies
from cpfast.pruning import Samples, policies
from cpfast.recipes import Mixup, Prune, Window
from cpfast.studies import Runner, normalisation, store
from cpfast.studies.enlightenment import Enlightenment, effect
from cpfast.studies.enlightenment.arms import Run
from cpfast.studies.enlightenment.order import NAMES, milestones, order, reached, trace
from cpfast.train import loop
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
TOTAL = 8
ALPHA, BOOST, REMOVED = 0.3, 2.0, 0.25  # of 24 samples, 6
MIXED, LEFT_OUT = ("pause", "boost"), ("removal", "random")
RUNS = [
    ("ordinary", 0, 0), ("mixup", 0, 0),
    ("pause", 0, 5), ("pause", 0, 2), ("pause", 0, 1), ("pause", 3, 4), ("pause", 2, 4),
    ("boost", 0, 5), ("boost", 0, 2), ("boost", 0, 1), ("boost", 3, 4), ("boost", 2, 4),
    ("removal", 1, 5), ("removal", 1, 2), ("removal", 3, 4),
    ("random", 1, 5), ("random", 1, 2),
]  # fmt: skip


def make_plan(seeds=(0,), strategies=("pause", "boost", "removal"), **given):
    config = make_config(
        criterion="slope45", at=None, epochs=TOTAL, repeats=1, detect=False, eval_every=TOTAL,
        policy="high_loss_removal",
    )  # fmt: skip
    return Enlightenment(config, tuple(seeds), strategies, **{
        "lengths": (1, 2, 5), "alpha": ALPHA, "boost": BOOST, "removed": REMOVED, **given
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("enlightenment")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


# --- the order


def epsilon_squared(x, labels):
    """By Kelley: one less the mean square within the classes over the total one."""
    x = np.asarray(x, dtype=np.float64)
    groups = [x[labels == label] for label in np.unique(labels)]
    within = sum(((group - group.mean(0)) ** 2).sum() for group in groups)
    total = ((x - x.mean(0)) ** 2).sum()
    return 1 - (within / (len(x) - len(groups))) / (total / (len(x) - 1))


@pytest.mark.parametrize(("size", "classes", "outputs"), [(40, 3, 3), (57, 10, 4), (9, 8, 1)])
def test_the_order_is_that_of_numpy(size, classes, outputs):
    random = np.random.default_rng(size)
    labels = random.integers(classes, size=size)
    labels[labels == 1] = 0  # one class has no sample
    x = random.normal(5, 1, (size, outputs)) + 0.8 * labels[:, None]
    found = order(torch.tensor(x, dtype=torch.float32), torch.from_numpy(labels), classes)
    assert found.dtype == torch.float64 and found.shape == ()
    assert found.item() == pytest.approx(epsilon_squared(x, labels), abs=1e-5)


def test_the_order_is_0_on_average_where_there_is_none_and_1_where_all_is_ordered():
    random = np.random.default_rng(0)
    x, labels = torch.from_numpy(random.normal(size=(30, 4))), np.arange(30) % 10
    values = [order(x, torch.from_numpy(random.permutation(labels)), 10) for _ in range(400)]
    values = torch.stack(values)
    # not corrected, its mean is 9/29
    assert abs(values.mean()) < 3 * values.std() / 20 < 0.02
    target = torch.from_numpy(labels)
    assert order(torch.eye(10)[target], target, 10).item() == pytest.approx(1, abs=1e-12)
    assert order(torch.ones(30, 4), target, 10) == 0


def test_the_order_does_not_change_with_scale_place_and_direction():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    x = torch.randn(40, 3, generator=random).double() + labels[:, None]
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=random).double())
    moved = order(7 * x @ turned - 100, labels, 4)
    assert moved.item() == pytest.approx(order(x, labels, 4).item(), abs=1e-9)


def test_where_a_value_is_reached():
    assert reached([0, 1, 3], [0.1, 0.5, 0.9], 0.7) == pytest.approx(2)
    assert reached([0, 1, 3], [0.6, 0.5, 0.9], 0.5) == 0
    assert reached([0, 1, 3], [0.1, 0.9, 0.2], 0.9) == 1
    assert reached([0, 1, 3], [0.1, 0.5, 0.9], 0.91) is None


def test_milestones():
    """The order goes from .2 to .7: a tenth of the way is .25, nine tenths .65."""
    found = {
        "chance": 0.1, "epoch": [0, 1, 2, 4, 8], "order": [0.2, 0.3, 0.5, 0.6, 0.7],
        "accuracy": [0.1, 0.3, 0.5, 0.7, 0.9],
    }  # fmt: skip
    assert milestones(found) == pytest.approx((0.5, 6.0, 1.5, 2.0, 2.5))
    disordered = {**found, "order": [0.2, 0.3, 0.3, 0.2, 0.2], "accuracy": [0.1] * 5}
    assert milestones(disordered) == (None,) * 5


def test_the_trace_is_what_numpy_makes_of_the_weights_before_a_step(finished):
    """Of a copy of the model, whose statistics are measured by torch's plain means."""
    data, found = toy_data(), finished[1]["runs"][1]["trace"]  # mixup's
    training = Training(make_plan().config, data, [Mixup(ALPHA)])
    expected, steps = [], []

    def look():
        model = copy.deepcopy(training.model)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        images, labels = training.batches.test(torch.arange(data.test_size))
        plain, _ = training.batches.plain(torch.arange(data.train_size))
        with torch.no_grad():
            model.train()(plain)
            logits = model.eval()(images)
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        expected.append((epsilon_squared(logits.numpy(), labels.numpy()), accuracy))

    def hook(*_):
        steps.append(len(steps))
        if len(steps) - 1 in places:
            look()

    places = {0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22}
    training.optimizer.register_step_pre_hook(hook)
    for _ in range(TOTAL):
        loop.train_epoch(training)
    look()
    assert len(steps) == 24  # three an epoch
    assert found["epoch"] == pytest.approx([step / 3 for step in sorted(places)] + [8], rel=1e-5)
    assert found["chance"] == pytest.approx(1 / 3)
    orders, accuracies = zip(*expected, strict=True)
    assert found["order"] == pytest.approx(orders, abs=1e-5)
    assert found["accuracy"] == pytest.approx(accuracies, abs=1e-6)
    assert max(orders) - min(orders) > 0.1


def test_looking_changes_nothing(finished):
    """The last place is the end of the run that was not looked at."""
    for entry in finished[1]["runs"]:
        assert (entry["trace"] is not None) == (entry["arm"] in ("ordinary", "mixup"))
        if entry["trace"] is not None:
            assert entry["trace"]["accuracy"][-1] == pytest.approx(entry["test_accuracy"])
    config = make_plan().config.replace(repeats=2)
    twice = trace(config, toy_data(), [])
    assert twice["epoch"][1] == pytest.approx(1 / 6, rel=1e-5)  # of two passes


# --- the runs


def test_each_period_once_beside_its_controls(finished):
    out, results = finished
    keys = [(e["seed"], e["arm"], e["begin"], e["end"]) for e in results["runs"]]
    assert keys == [(seed, *one) for seed in (0, 1) for one in RUNS]
    assert make_plan((0, 1)).wanted({}) == len(keys)
    assert all(e["epochs"] == TOTAL and e["diverged"] is None for e in results["runs"])
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


def test_strategies_bring_their_controls_and_no_others():
    assert {one.arm for one in make_plan(strategies=("pause",)).runs()} == {
        "ordinary", "mixup", "pause"
    }  # fmt: skip
    assert {one.arm for one in make_plan(strategies=("removal",)).runs()} == {
        "ordinary", "removal", "random"
    }  # fmt: skip


def by_hand(arm, begin, end):
    """What is beyond an ordinary run, and its policy."""
    window = Window.between(begin, end, TOTAL)
    return {
        "ordinary": lambda: [], "mixup": lambda: [Mixup(ALPHA)],
        "pause": lambda: [Mixup(ALPHA), Mixup(0.0, window)],
        "boost": lambda: [Mixup(ALPHA), Mixup(BOOST, window)],
        "removal": lambda: [Prune(0.75, window)], "random": lambda: [Prune(0.77, window)],
    }[arm](), "random" if arm == "random" else "high_loss_removal"  # fmt: skip


@pytest.mark.parametrize("one", RUNS, ids=lambda one: "-".join(map(str, one)))
def test_a_run_forked_or_not_is_the_one_from_scratch(finished, tmp_path, one):
    """Whose actions are written by hand; to the bit."""
    actions, policy = by_hand(*one)
    plan = make_plan()
    config, folder = plan.config.replace(policy=policy), RunFolder(tmp_path / "scratch")
    assert Runner(plan, toy_data(), tmp_path).train(
        config, folder, "scratch", actions=actions
    ) is None  # fmt: skip
    name = one[0] if one[2] == 0 else "-".join(map(str, one))
    forked = RunFolder(finished[0] / "seed0" / name)
    state, stored = (f.checkpoint()["model"] for f in (folder, forked))
    for key, value in state.items():
        assert torch.equal(value, stored[key]), key
    for line, other in zip(*(metrics(f.path) for f in (folder, forked)), strict=True):
        for key in ("train_loss", "test_accuracy", "forward_samples", "repeats", "lr"):
            assert line[key] == other[key]


@pytest.mark.parametrize("arm", LEFT_OUT)
def test_as_many_are_left_out_at_random_as_by_their_loss(finished, arm):
    planned = [line["planned_samples"] for line in metrics(finished[0] / "seed0" / f"{arm}-1-5")]
    assert planned == [24, 18, 18, 18, 18, 24, 24, 24]


@pytest.mark.parametrize("size", [24, 100, 256, 1797])
@pytest.mark.parametrize("removed", [0.1, 0.25, 1 / 3, 0.6, 0.9])
def test_the_counts_agree_whatever_the_share(size, removed):
    """The policy's own count, of what the action tells it."""
    plan = make_plan(removed=removed)
    shares = {}
    for arm in LEFT_OUT:
        (action,) = plan.actions(Run(arm, 1, 5), size)
        shares[arm] = 1 - (1 - action.keep)  # as it is applied
    losses = torch.arange(size, dtype=torch.float32)
    samples = Samples(size, losses.device, {"loss": losses}, {})
    rule = policies.make("high_loss_removal")
    chosen = rule.select(samples, moment=None, keep=shares["removal"], draw=None)
    assert int(chosen.count) == math.floor(shares["random"] * size)
    assert int(chosen.count) == size - plan.count_removed(size)
    # those of the highest loss are gone
    assert chosen.indices[: int(chosen.count)].tolist() == list(range(int(chosen.count)))


def test_accuracy_is_by_the_statistics_of_the_weights_that_are_tested(finished):
    training = Training(make_plan().config, toy_data())
    state = RunFolder(finished[0] / "seed0/pause-0-2").checkpoint()["model"]
    training.model.load_state_dict(dict(state))
    normalisation.measure(training)
    entry = studies.find(finished[1], arm="pause", begin=0, end=2, seed=0)
    assert (entry["test_loss"], entry["test_accuracy"]) == loop.evaluate(training)


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


def test_a_stop_within_a_run_loses_nothing(finished, tmp_path, monkeypatch):
    real, calls = loop.train_epoch, []

    def train_epoch(training, progress=None):
        calls.append(training.epoch)
        if len(calls) % 10 == 0:
            raise KeyboardInterrupt
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = None
    while results is None:
        try:
            results = studies.run(make_plan(), toy_data(), tmp_path)
        except KeyboardInterrupt:
            continue
    assert len(calls) > 50
    first = [e for e in finished[1]["runs"] if e["seed"] == 0]
    assert essence(results) == essence({"runs": first})


def test_what_begins_as_a_run_that_diverged_is_not_run(tmp_path, monkeypatch):
    real = loop.train_epoch

    def train_epoch(training, progress=None):
        if not training.recipe.actions[1:] and training.epoch == 1:
            raise Diverged("training diverged: epoch 2")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = studies.run(make_plan(strategies=("pause", "removal")), toy_data(), tmp_path)
    missing = "not run: what it begins as diverged before epoch"
    found = {(e["arm"], e["begin"], e["end"]): e["diverged"] for e in results["runs"]}
    assert found == {
        ("ordinary", 0, 0): "training diverged: epoch 2", ("mixup", 0, 0): None,
        ("pause", 0, 5): f"{missing} 5", ("pause", 0, 2): f"{missing} 2", ("pause", 0, 1): None,
        ("pause", 3, 4): None, ("pause", 2, 4): None,
        ("removal", 1, 5): None, ("removal", 1, 2): None, ("removal", 3, 4): f"{missing} 3",
        ("random", 1, 5): None, ("random", 1, 2): None,
    }  # fmt: skip
    assert studies.read_results(tmp_path) == results
    assert "pause in epochs 0 to 5, seed 0: not run: what it begins as" in told(results)


@pytest.mark.parametrize(
    "key", ["strategies", "lengths", "removed", "arm", "end", "trace", *store.ENTRY]
)
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"trace": None}, {"trace": {}}, {"arm": "pause"}, {"arm": "ordinal"}, {"end": 1},
        {"trace": {"chance": 0.1, **dict.fromkeys(NAMES, 1.0)}},
        {"trace": {"chance": 0.1, **{n: [1.0] for n in NAMES}}},
        {"trace": {"chance": 0.1, **{n: ["a", "b"] for n in NAMES}}},
        {"trace": {"chance": None, **{n: [1.0, 2.0] for n in NAMES}}},
    ],
)  # fmt: skip
def test_an_entry_that_is_none_of_the_study_is_named(finished, tmp_path, change):
    entry = {**finished[1]["runs"][0], **change}
    (tmp_path / "results.json").write_text(json.dumps({**finished[1], "runs": [entry]}))
    with pytest.raises(UserError, match=r"damaged .entry 1 of 'runs'"):
        studies.read_results(tmp_path)


def test_data_that_do_not_go_with_it_are_named_before_anything_is_trained(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"--removed 0.04: not one of 24 samples"):
        studies.run(make_plan(removed=0.04), toy_data(), tmp_path / "a")
    data = toy_data()
    few = data.__class__(
        data.train_images, data.train_labels, data.test_images[:3], data.test_labels[:3],
        data.classes, "toy",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"--data digits: 3 test images of 3 classes"):
        studies.run(make_plan(), few, tmp_path / "b")
    assert not list(tmp_path.glob("*/seed*"))


# --- what is concluded


def results_of(accuracies, traces=None):
    """By (arm, begin, end): of seeds 0, 1, 2."""
    runs = [
        (
            {"arm": arm, "begin": begin, "end": end, "seed": seed,
             "trace": (traces or {}).get(arm, [None] * 3)[seed]},
            value,
        )
        for (arm, begin, end), values in accuracies.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return made_up(make_plan((0, 1, 2)), runs)


def linear(rate, disordered=0.0):
    """Accuracy and order rise from 0 in so many epochs, after some in which they do not."""
    epochs = [0.0, disordered or 0.01, disordered + 1 / rate, 8.0]
    return {
        "chance": 0.0, "epoch": epochs, "order": [0.0, 0.0, 1.0, 1.0],
        "accuracy": [0.0, 0.0, 1.0, 1.0],
    }  # fmt: skip


@pytest.mark.needs("scipy")
def test_each_is_held_against_its_controls():
    results = results_of(
        {
            ("ordinary", 0, 0): [0.80, 0.80, 0.80], ("mixup", 0, 0): [0.90, 0.91, 0.92],
            ("pause", 0, 2): [0.90, 0.90, 0.93], ("pause", 2, 4): [0.80, 0.80, 0.83],
            ("removal", 1, 2): [0.79, 0.80, 0.81], ("random", 1, 2): [0.69, 0.70, 0.71],
            ("removal", 1, 5): [0.70, 0.70, 0.70],
        },
        {"ordinary": [linear(0.5, 0.5), linear(0.5, 0.6), linear(0.5, 0.7)],
         "mixup": [linear(0.5, 1.0), linear(0.5, 1.1), linear(0.5, 1.2)]},
    )  # fmt: skip
    text = told(results)
    # half way after 1.5, 1.6, 1.7 epochs: two contain the period, and one does not
    assert effect.period(make_plan(), results, "pause") == Run("pause", 0, 2)
    # 0, -1, 1: t(0.975; 2) = 4.3027, of a deviation of 1
    assert effect.against(results, Run("pause", 0, 2), Run("mixup")) == pytest.approx(
        (0.0, 4.3027 / 3**0.5), rel=1e-4, abs=1e-9
    )
    for line in (
        "Mixup paused until epoch 2, against ordinary training: +11.00 ± 4.30 points (seen).",
        "Mixup paused until epoch 2, against the same in epochs 2 to 4: +10.00 ± 0.00 points "
        "(seen).",
        "Samples of high loss removed until epoch 2, against as many removed at random: +10.00 ± "
        "0.00 points (seen).",
        "As many at random until epoch 2, against ordinary training: -10.00 ± 2.48 points (seen).",
        "Samples of high loss removed until epoch 5 for 2 changes accuracy by: -10.00 ± 2.48 "
        "points (seen).",
        "Mixup throughout, against none: +11.00 ± 2.48 points (seen).",
        "That outputs are ordered comes after accuracy is half way from chance by: +0.80 ± 0.00 "
        "epochs (seen).",
        "With mixup accuracy is half way from chance later by: +0.50 ± 0.00 epochs (seen).",
        "is reached after 1.60 ± 0.25 epochs",
        "leaves out the 6 samples of the highest loss",
    ):
        assert line in text
    assert "larger alpha until" not in text


@pytest.mark.needs("scipy")
def test_periods_that_are_too_short_are_not_said_to_contain_it():
    late = {**linear(0.5), "accuracy": [0.0, 0.1, 0.2, 1.0]}
    late["epoch"] = [0.0, 1.0, 6.0, 8.0]
    traces = {"ordinary": [late] * 3}
    results = results_of({("ordinary", 0, 0): [0.8] * 3}, traces)
    assert min(effect.half_way(results).values()) > 5
    assert effect.period(make_plan(), results, "pause") == Run("pause", 0, 5)
    text = told(results)
    assert "None of the periods above is so long" in text and "shortest that contains" not in text


@pytest.mark.needs("scipy")
def test_without_a_trace_the_period_is_the_longest():
    results = results_of({("ordinary", 0, 0): [0.8] * 3})
    assert effect.period(make_plan(), results, "removal") == Run("removal", 1, 5)
    assert "epochs (seen)" not in told(results)


@pytest.mark.needs("scipy")
def test_a_seed_that_does_not_get_there_is_counted():
    never = {**linear(0.5), "accuracy": [0.0, 0.1, 0.2, 0.3]}
    traces = {"ordinary": [linear(0.5, 0.5), linear(0.5, 0.5), never]}
    results = results_of({("ordinary", 0, 0): [0.8] * 3}, traces)
    assert effect.period(make_plan(), results, "pause") == Run("pause", 0, 5)
    text = told(results)
    assert "1.50 ± 0.00 (2 of 3 seeds)" in text
    assert "Accuracy does not get half way from chance with every seed" in text
    assert "after nan" not in text and "is reached after" not in text


@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "enlightenment.png", tmp_path / "all.png")
    check_picture(tmp_path / "all.png", "#D55E00", "#0072B2", "#009E73", "#CC79A7")
    for count in (1, 3):
        part = {**finished[1], "runs": finished[1]["runs"][-count:]}
        draw(part, "enlightenment.png", tmp_path / "part.png")
    only = {**finished[1], "strategies": ["pause"], "runs": finished[1]["runs"][:3]}
    draw(only, "enlightenment.png", tmp_path / "one.png")
