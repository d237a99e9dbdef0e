"""The comparison: shared beginnings, equal budgets, resumed arm by arm, statistics."""

import json
import math

import pytest
import torch

from cpfast.train import compare, loop, plots
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = 24
EPOCHS = 6
END = 2


def toy_data():
    generator = torch.Generator().manual_seed(0)

    def make(count):
        labels = torch.arange(count) % 3
        images = torch.randint(0, 200, (count, 6, 6, 1), generator=generator, dtype=torch.uint8)
        for label in range(3):
            images[labels == label, 2 * label : 2 * label + 2] += 55
        return images, labels

    return ImageData(*make(TRAIN), *make(30), ("a", "b", "c"), "toy")


def make_config(**options):
    base = {
        "epochs": EPOCHS, "batch_size": 8, "model": "cnn", "method": "full", "lr": 0.05,
        "criterion": "fixed", "at": END, "energy": False,
    }  # fmt: skip
    return Config.from_options({**base, **options})


def metrics(path):
    lines = RunFolder(path).metrics()
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("compare")
    return out, compare.compare(make_config(), toy_data(), out, [0, 1])


def test_each_arm_and_seed_once(finished):
    out, results = finished
    assert [(e["seed"], e["arm"]) for e in results["runs"]] == [
        (seed, arm) for seed in (0, 1) for arm in compare.ARMS
    ]
    assert json.loads((out / "results.json").read_text()) == results
    assert all(entry.keys() == compare.ENTRY_KEYS for entry in results["runs"])


def test_samples_of_the_arms(finished):
    for seed in (0, 1):
        samples = {
            arm: compare.find(finished[1], arm, seed)["forward_samples"] for arm in compare.ARMS
        }
        assert samples["full"] == 3 * EPOCHS * TRAIN
        assert samples["detector"] == (3 * END + EPOCHS - END) * TRAIN
        assert samples["k1"] == EPOCHS * TRAIN
        assert samples["k1_matched"] == samples["detector"]
        matched = compare.find(finished[1], "k1_matched", seed)
        assert matched["epochs"] == 3 * END + EPOCHS - END


def test_the_detector_arm_begins_as_full(finished):
    out, _ = finished
    full, detector = metrics(out / "seed0/full"), metrics(out / "seed0/detector")
    assert full[:END] == detector[:END]
    times = [
        [line["seconds"] for line in RunFolder(out / f"seed0/{arm}").metrics()[:END]]
        for arm in ("full", "detector")
    ]
    assert times[0] == times[1]
    assert full[END]["forward_samples"] == 3 * detector[END]["forward_samples"]


def test_the_fork_equals_a_detector_run_from_scratch(finished, tmp_path):
    out, _ = finished
    folder = RunFolder(tmp_path / "scratch")
    config = make_config(method="detector")
    folder.create(config)
    loop.run(config, toy_data(), folder)
    assert metrics(folder.path) == metrics(out / "seed0/detector")
    a, b = folder.checkpoint()["model"], RunFolder(out / "seed0/detector").checkpoint()["model"]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_controls_do_not_pay_for_detection_and_follow_their_own_schedule(finished):
    out, _ = finished
    for arm in ("k1", "k1_matched"):
        lines = RunFolder(out / f"seed0/{arm}").metrics()
        assert all(line["rotation"] == {} for line in lines)
        assert all(line["seconds"]["detection"] == 0 for line in lines)
        assert all(line["repeats"] == 1 for line in lines)
        # dropped tenfold at the half and at three quarters of its own length
        rates = [line["lr"] for line in lines]
        assert rates[0] == pytest.approx(0.05) and rates[-1] == pytest.approx(0.0005)


def test_time_is_prefix_plus_rest_and_full_is_not_charged_for_detection(finished):
    out, results = finished
    for arm, charged in (("full", False), ("detector", True)):
        lines = RunFolder(out / f"seed1/{arm}").metrics()
        expected = sum(
            line["seconds"]["train"] - (0 if charged else line["seconds"]["detection"])
            for line in lines
        )
        entry = compare.find(results, arm, 1)
        assert entry["seconds"] == pytest.approx(expected)
        assert entry["curve"][-1] == [pytest.approx(expected), entry["test_accuracy"]]


def test_a_stop_loses_nothing(finished, tmp_path):
    _, whole = finished
    config, data, ended = make_config(), toy_data(), []

    class Stop(Exception):
        pass

    def stop(entry):
        ended.append((entry["seed"], entry["arm"]))
        raise Stop

    for number in range(8):
        with pytest.raises(Stop):
            compare.compare(config, data, tmp_path, [0, 1], finished=stop)
        assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == number + 1
    again = compare.compare(config, data, tmp_path, [0, 1], finished=stop)
    assert len(set(ended)) == 8

    def essence(results):
        return [
            (e["arm"], e["seed"], e["forward_samples"], e["test_accuracy"]) for e in results["runs"]
        ]

    assert essence(again) == essence(whole)


def test_a_stop_within_the_full_arm(finished, tmp_path, monkeypatch):
    out, _ = finished
    real, calls = loop.train_epoch, []

    def killed(training, progress=None):
        calls.append(training.epoch)
        if len(calls) == END + 2:
            raise KeyboardInterrupt
        return real(training, progress)

    monkeypatch.setattr(loop, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(make_config(), toy_data(), tmp_path, [0])
    compare.compare(make_config(), toy_data(), tmp_path, [0])
    for arm in compare.ARMS:
        assert metrics(tmp_path / "seed0" / arm) == metrics(out / "seed0" / arm)
    # no epoch was done twice but the one under way
    assert calls.count(0) == 3 and calls[: END + 3] == [0, 1, 2, 3, 3]


def test_a_period_that_does_not_end_makes_the_detector_arm_full(tmp_path):
    # epochs below the window of slope45: it cannot fire
    config = make_config(criterion="slope45", at=None, epochs=3)
    results = compare.compare(config, toy_data(), tmp_path, [0])
    full, detector = (compare.find(results, arm, 0) for arm in ("full", "detector"))
    assert detector["period_end"] is None
    assert detector["forward_samples"] == full["forward_samples"] == 3 * 3 * TRAIN
    assert detector["test_accuracy"] == full["test_accuracy"]
    assert "The critical period ended after epoch: not." in compare.compare_table(results)
    assert compare.find(results, "k1_matched", 0)["epochs"] == 9


def test_another_comparison_is_refused_and_left_alone(finished):
    out, results = finished
    with pytest.raises(UserError, match=r"another comparison: --epochs 7 .the run has 6"):
        compare.compare(make_config(epochs=7), toy_data(), out, [0, 1])
    with pytest.raises(UserError, match=r"seeds \[0\] .it has \[0, 1\]"):
        compare.compare(make_config(), toy_data(), out, [0])
    assert json.loads((out / "results.json").read_text()) == results


def test_a_limit_taken_away_is_another_comparison(tmp_path):
    compare.open_results(tmp_path, make_config(limit=12), [0])
    with pytest.raises(UserError, match=r"--limit None .the run has 12"):
        compare.open_results(tmp_path, make_config(), [0])
    # where it runs does not matter
    compare.open_results(tmp_path, make_config(limit=12, plot=False, threads=3), [0])


def damage(results, key):
    if key in results:
        return {name: value for name, value in results.items() if name != key}
    entry = {name: value for name, value in results["runs"][1].items() if name != key}
    return {**results, "runs": [results["runs"][0], entry]}


@pytest.mark.parametrize("key", ["config", "seeds", "runs", *sorted(compare.ENTRY_KEYS)])
def test_results_that_lack_something_are_named(finished, tmp_path, key):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damage(finished[1], key)))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        compare.read_results(tmp_path)


def test_default_folder_depends_on_the_settings_that_matter():
    base = compare.default_folder(make_config(), [0, 1])
    assert compare.default_folder(make_config(plot=False), [0, 1]) == base
    assert compare.default_folder(make_config(epochs=7), [0, 1]) != base
    assert compare.default_folder(make_config(), [0]) != base


def test_interval_is_that_of_the_t_distribution():
    # Student's table: t(0.975; 2) = 4.303, sd = 1
    mean, half = compare.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert compare.interval([5.0]) == (5.0, None)


def test_table_shows_all_and_does_not_overclaim(finished):
    results = finished[1]
    table = compare.compare_table(results)
    for arm in compare.ARMS:
        assert f"\n{arm} " in table
    assert "The fair controls are k1 and k1_matched" in table
    assert "On digits this shows the mechanism, not a benefit." in table
    assert "95 % intervals (t distribution) over 2 seeds" in table and "±" in table
    one = {**results, "seeds": [0], "runs": [e for e in results["runs"] if e["seed"] == 0]}
    assert "±" not in compare.compare_table(one) and "no interval" in compare.compare_table(one)
    part = {**results, "runs": results["runs"][:3]}
    assert "3 of 8 runs, unfinished" in compare.compare_table(part)


def test_paired_difference(finished):
    entries = []
    for seed, full, cheap in ((0, 0.90, 0.91), (1, 0.80, 0.82), (2, 0.70, 0.73)):
        for arm, accuracy in (("full", full), ("k1", cheap)):
            entries.append(
                {**finished[1]["runs"][0], "arm": arm, "seed": seed, "test_accuracy": accuracy}
            )
    table = compare.compare_table({**finished[1], "seeds": [0, 1, 2], "runs": entries})
    row = next(line for line in table.splitlines() if line.startswith("k1"))
    # differences 1, 2, 3 points: 2 +- 4.303 / sqrt(3)
    assert "+2.00 ± 2.48" in row


def test_picture(finished, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "accuracy.png"
    plots.draw_comparison(finished[1], path)
    image = image_module.open(path).convert("RGB")
    assert image.width > 800 and image.height > 400
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    for hexadecimal in ("#D55E00", "#0072B2", "#009E73"):
        assert tuple(bytes.fromhex(hexadecimal[1:])) in colours
