"""Deficits: what they do to the data, when they are there, what they leave, stops."""

import dataclasses
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
    metrics,
    run_with_stops,
    told,
    toy_data,
)

from cpfast import studies
from cpfast.studies import normalisation, store
from cpfast.studies.deficit import Deficit
from cpfast.studies.deficit import damage as left
from cpfast.studies.deficits import DEFICITS, blur
from cpfast.train import batches, loop
from cpfast.train.errors import Diverged, UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def make_plan(
    seeds=(0,), deficits=("flip", "permutation"), removals=(1, 2), onsets=(0, 1), **given
):
    config = make_config(
        criterion="slope45", at=None, epochs=2, repeats=1, schedule="constant", detect=False
    )
    return Deficit(config, tuple(seeds), deficits, removals, onsets, **{"window": 1, **given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("deficit")
    return out, studies.run(make_plan((0, 1)), toy_data(), out)


# --- the data


@pytest.mark.parametrize("name", DEFICITS)
def test_a_deficit_is_of_the_training_data_alone_and_of_its_seed(name):
    data = dataclasses.replace(toy_data(), classes=tuple("abcdefgh"))
    made, again, other = (DEFICITS[name](data, seed) for seed in (0, 0, 1))
    assert torch.equal(made.test_images, data.test_images)
    assert torch.equal(made.test_labels, data.test_labels)
    assert made.train_images.dtype == torch.uint8 and made.train_images.is_contiguous()
    assert made.fingerprint() == again.fingerprint() != data.fingerprint()
    assert (made.fingerprint() == other.fingerprint()) == (name in ("blur", "flip"))


def test_blur_leaves_what_is_coarse_and_takes_what_is_fine():
    rows = torch.arange(16)
    fine = ((rows[:, None] + rows) % 2 * 200).byte()
    coarse = (rows[:, None] // 8 * 200).expand(16, 16).byte()
    images = torch.stack([fine, coarse])[..., None]
    data = dataclasses.replace(toy_data(), train_images=images, train_labels=torch.zeros(2).long())
    seen = blur(data, 0).train_images[..., 0].float()
    assert (seen[0] - 100).abs().max() <= 25  # no check is left of the board
    assert seen[1, :3].max() < 20 and seen[1, -3:].min() > 180
    assert (seen[1].diff(dim=0) >= 0).all() and (seen[1].diff(dim=1) == 0).all()


def test_flip_is_upside_down():
    data = toy_data()
    assert torch.equal(DEFICITS["flip"](data, 0).train_images[:, 0], data.train_images[:, -1])


def test_a_permutation_gives_each_class_the_name_of_another():
    data = dataclasses.replace(toy_data(), classes=tuple("abcdefgh"))
    data = dataclasses.replace(data, train_labels=torch.arange(24) % 8)
    renamed = DEFICITS["permutation"](data, 3).train_labels
    names = dict(zip(data.train_labels.tolist(), renamed.tolist(), strict=True))
    assert [names[label] for label in data.train_labels.tolist()] == renamed.tolist()
    assert sorted(names.values()) == list(range(8))
    assert all(label != name for label, name in names.items())


def test_noise_says_nothing_of_the_image():
    data = toy_data()
    dark = dataclasses.replace(data, train_images=torch.zeros_like(data.train_images))
    one, other = (DEFICITS["noise"](d, 0).train_images for d in (data, dark))
    assert torch.equal(one, other) and 120 < one.float().mean() < 135


# --- the runs


def test_each_span_once_and_a_control_of_each_length(finished):
    out, results = finished
    keys = [(e["deficit"], e["begin"], e["end"], e["seed"]) for e in results["runs"]]
    spans = [("none", 1, 1), ("none", 2, 2)]
    spans += [(d, *span) for d in ("flip", "permutation") for span in ((0, 1), (0, 2), (1, 2))]
    assert sorted(keys) == sorted((*span, seed) for span in spans for seed in (0, 1))
    assert len(keys) == make_plan((0, 1)).wanted({"runs": []})
    assert all(e["epochs"] == e["end"] + 2 for e in results["runs"])
    assert json.loads((out / "results.json").read_text()) == results == studies.read_results(out)


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 2), (1, 2), (2, 2)])
def test_a_run_is_what_swapping_the_data_by_hand_makes_it(finished, begin, end):
    """The deficit in its epochs alone, and the last epoch at a tenth of the rate."""
    config = make_plan().configured(0)
    data = {True: DEFICITS["flip"](toy_data(), 0), False: toy_data()}
    training = Training(config, toy_data())
    base = list(training.schedule.base_lrs)
    for epoch in range(end + 2):
        shown = data[begin <= epoch < end]
        training.data, training.batches = shown, batches.of(config, shown)
        training.schedule.base_lrs = [rate * (0.1 if epoch == end + 1 else 1.0) for rate in base]
        loop.train_epoch(training)
    name = "none-2" if begin == end else f"flip-{begin}-{end}"
    stored = RunFolder(finished[0] / "seed0" / name).checkpoint()["model"]
    for key, value in training.model.state_dict().items():
        assert torch.allclose(value, stored[key], rtol=1e-5, atol=1e-7), key


def test_accuracy_is_by_the_statistics_of_the_weights_that_are_tested(finished):
    out, results = finished
    entry = studies.find(results, deficit="flip", begin=0, end=2, seed=0)
    training = Training(make_plan().configured(0), toy_data())
    state = RunFolder(out / "seed0/flip-0-2").checkpoint()["model"]
    training.model.load_state_dict(dict(state))
    stale = loop.evaluate(training)
    normalisation.measure(training)
    assert (entry["test_loss"], entry["test_accuracy"]) == loop.evaluate(training) != stale


def test_a_stop_after_each_run_loses_nothing(finished, tmp_path):
    results, stops = run_with_stops(make_plan((0, 1)), tmp_path)
    assert stops == len(results["runs"])
    assert essence(results) == essence(finished[1])


@pytest.mark.parametrize("call", [2, 5, 9])
def test_a_stop_within_a_run(finished, tmp_path, monkeypatch, call):
    real, calls = loop.train_epoch, []

    def killed(training, progress=None):
        calls.append(training.epoch)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        studies.run(make_plan((0, 1)), toy_data(), tmp_path)
    assert essence(studies.run(make_plan((0, 1)), toy_data(), tmp_path)) == essence(finished[1])


@pytest.mark.needs("matplotlib")
def test_what_diverges_takes_what_follows_with_it_and_nothing_else(tmp_path, monkeypatch):
    real = loop.train_epoch
    flipped = DEFICITS["flip"](toy_data(), 0).fingerprint()

    def train_epoch(training, progress=None):
        if training.fingerprint == flipped and training.epoch == 1:
            raise Diverged("training diverged: epoch 2")
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    results = studies.run(make_plan(), toy_data(), tmp_path)
    reasons = {
        (e["deficit"], e["begin"], e["end"]): e["diverged"]
        for e in results["runs"]
        if e["diverged"]
    }
    assert reasons == dict.fromkeys(
        [("flip", 0, 2), ("flip", 1, 2)], "not run: training diverged: epoch 2"
    )
    assert "flip in epochs 0 to 2, seed 0: not run: training diverged" in told(results)
    draw(results, "deficit.png", tmp_path / "deficit.png")


@pytest.mark.parametrize("key", ["deficits", "window", "deficit", "begin", *store.ENTRY])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        studies.read_results(tmp_path)


@pytest.mark.parametrize("change", [{"deficit": "fog"}, {"end": 3}, {"deficit": "none"}])
def test_a_span_that_is_not_of_the_study_is_named(finished, tmp_path, change):
    entry = next(e for e in finished[1]["runs"] if e["deficit"] == "flip")
    (tmp_path / "results.json").write_text(
        json.dumps({**finished[1], "runs": [{**entry, **change}]})
    )
    with pytest.raises(UserError, match=r"damaged .entry 1 of 'runs': no deficit"):
        studies.read_results(tmp_path)


# --- what is concluded


def results_of(accuracies, **options):
    """By (deficit, begin, end): of seeds 0, 1, 2."""
    return made_up(
        make_plan((0, 1, 2), **options),
        [
            ({"deficit": name, "begin": begin, "end": end, "seed": seed}, value)
            for (name, begin, end), values in accuracies.items()
            for seed, value in enumerate(values)
        ],
    )


@pytest.mark.needs("scipy")
def test_damage_is_paired_with_clean_training_of_the_same_length():
    results = results_of(
        {
            ("none", 1, 1): [0.90, 0.92, 0.94], ("none", 2, 2): [0.91, 0.93, 0.95],
            ("flip", 0, 1): [0.89, 0.91, 0.93], ("flip", 0, 2): [0.80, 0.83, 0.86],
            ("flip", 1, 2): [0.92, 0.92, 0.95],
        },
        deficits=("flip",),
    )  # fmt: skip
    assert left.damage(results, "flip", (0, 1)) == pytest.approx((-1.0, 0.0))
    # -11, -10, -9: t(0.975; 2) = 4.3027, of a deviation of 1
    late = left.damage(results, "flip", (0, 2))
    assert late == pytest.approx((-10.0, 4.3027 / 3**0.5), rel=1e-4)
    # 1, -1, 0 less -1, -1, -1
    assert left.change(results, "flip", (0, 1), (1, 2)).mean == pytest.approx(1.0)
    text = told(results)
    assert "Damage by flip until epoch 2, 2 epochs later: -10.00 ± 2.48 points (seen)." in text
    assert "at epoch 2 for 1, changes the damage by: -9.00 ± 2.48 points (seen)." in text
    assert (
        "Later onset of 1 epochs of flip, at epoch 1 for 0, changes the damage by: +1.00 ± 2.48 "
        "points (not seen, for the interval contains 0)." in text
    )


def test_one_seed_says_so():
    results = results_of({("none", 2, 2): [0.9], ("flip", 0, 2): [0.8]}, deficits=("flip",))
    text = told({**results, "seeds": [0]})
    assert "2 epochs later: -10.00 points (one seed, from which nothing follows)." in text


@pytest.mark.needs("matplotlib")
def test_picture(finished, tmp_path):
    draw(finished[1], "deficit.png", tmp_path / "deficit.png")
    check_picture(tmp_path / "deficit.png", "#D55E00", "#0072B2", "#7F7F7F")
    draw({**finished[1], "runs": finished[1]["runs"][:1]}, "deficit.png", tmp_path / "part.png")


def test_the_removed_deficit_is_in_the_metrics_of_its_epochs_alone(finished):
    out, _ = finished
    clean, flipped = (metrics(out / "seed0" / name) for name in ("none-2", "flip-1-2"))
    assert clean[0] == flipped[0] and clean[1] != flipped[1]
