"""A warped schedule: k passes in the first epochs, and then one, are a schedule."""

import pytest
import torch
from support.toy_training import assert_same, make_config, start, toy_data, without_times

from cpfast.train import extension, run
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError
from cpfast.train.warp import Warp

pytestmark = pytest.mark.usefixtures("one_thread")

REPEATED, END = 3, 2  # passes, in so many epochs


def divided_data():
    """24 samples, which batches of 8 divide."""
    data = toy_data()
    return ImageData(
        data.train_images[:24], data.train_labels[:24], data.test_images, data.test_labels,
        data.classes, data.name,
    )  # fmt: skip


def trained(path, data, **options):
    config = make_config(eval_every=1, augment="paper", **options)
    folder = start(path, config)
    run.train(config, data, folder)
    return folder


SCHEDULES = [
    {"schedule": "cosine"},
    {"schedule": "cosine", "warmup": 0.3, "decay_power": 2.0},
    {"schedule": "step"},
    {"optimizer": "adamw", "lr": 1e-3, "schedule": "linear"},
]


@pytest.mark.parametrize("options", SCHEDULES)
@pytest.mark.parametrize("epochs", [END, 5])
def test_repeats_in_the_beginning_are_a_schedule_to_the_bit(tmp_path, options, epochs):
    """The identity: whatever `detector` gains over one pass an epoch, its learning rates gain."""
    data = divided_data()
    repeated = trained(
        tmp_path / "detector", data, method="detector", criterion="fixed", at=END,
        repeats=REPEATED, epochs=epochs, **options,
    )  # fmt: skip
    slow = REPEATED * END
    warped = trained(
        tmp_path / "warped", data, method="full", repeats=1, epochs=slow + epochs - END,
        warp=f"{REPEATED}@{slow}", **options,
    )  # fmt: skip
    one, other = repeated.checkpoint(), warped.checkpoint()
    assert_same(one["model"], other["model"])
    assert_same(one["optimizer"]["state"], other["optimizer"]["state"])
    assert_same(one["pruner"]["columns"], other["pruner"]["columns"])
    ends = [REPEATED - 1 + REPEATED * e for e in range(END)]
    ends += range(slow, slow + epochs - END)
    lines, of_warped = repeated.metrics(), warped.metrics()
    assert len(lines) == len(ends) == epochs
    for line, end in zip(lines, ends, strict=True):
        for name in ("lr", "test_loss", "test_accuracy"):
            assert line[name] == of_warped[end][name]
    samples = [sum(line["backward_samples"] for line in one) for one in (lines, of_warped)]
    assert samples[0] == samples[1] == (slow + epochs - END) * 24


def test_without_the_warp_they_are_not_the_same(tmp_path):
    data, options = divided_data(), {"method": "full", "repeats": 1, "epochs": 9}
    folders = [
        trained(tmp_path / str(warp), data, schedule="cosine", warp=warp, **options)
        for warp in (None, "1@4", "3@6")
    ]
    plain, once, warped = (folder.checkpoint()["model"] for folder in folders)
    assert_same(plain, once)
    assert not all(torch.equal(plain[name], warped[name]) for name in plain)
    rates = [[line["lr"] for line in folder.metrics()] for folder in folders]
    assert all(a < b for a, b in zip(rates[0], rates[2], strict=True))


@pytest.mark.parametrize("method", ["full", "prune"])
def test_stopped_and_continued_it_equals_no_stop_to_the_bit(tmp_path, method):
    states = []
    for name, stops in (("whole", [8]), ("parts", [1, 5, 8])):
        config = make_config(
            epochs=8, method=method, repeats=1, warp="3@6", schedule="cosine", eval_every=8
        )
        folder = start(tmp_path / name, config)
        for stop in stops:
            run.train(config, toy_data(), folder, epochs=stop)
        states.append(folder.checkpoint())
        states[-1]["metrics"] = without_times(folder.metrics())
    assert_same(*states)


def test_positions_count_the_passes_of_the_run_that_repeats():
    warp = Warp(3, 6)
    assert [warp.position(epoch)[:2] for epoch in range(9)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (4, 0),
    ]  # fmt: skip
    fractions = [warp.fraction(9, epoch, step, 4) for epoch in range(9) for step in range(4)]
    assert fractions == sorted(set(fractions)) and fractions[0] == 0
    assert fractions[-1] == (4 + 3 / 4) / 5


def test_as_it_is_time_is_that_of_the_epochs():
    for total, epoch, step, steps in [(7, 3, 2, 5), (200, 199, 390, 391), (1, 0, 0, 1)]:
        assert Warp().fraction(total, epoch, step, steps) == (epoch + step / steps) / total


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "--warp must be PASSES@EPOCHS, such as 3@30; got '3'"),
        ("-3@6", "--warp must be PASSES@EPOCHS"),
        ("3@6x", "--warp must be PASSES@EPOCHS"),
        ("0@6", "PASSES must be at least 1"),
        ("3@9", r"EPOCHS must be at most 8 \(--epochs\)"),
        ("3@4", "EPOCHS must be a multiple of PASSES"),
    ],
)
def test_what_is_wrong_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        make_config(epochs=8, warp=text)


def test_a_warped_run_is_not_made_longer():
    with pytest.raises(UserError, match="--epochs 9: the run's --warp 3@6"):
        extension.extended(make_config(epochs=8, warp="3@6"), 9, 4)


@pytest.mark.parametrize("schedule", ["step", "constant"])
def test_a_power_is_of_what_falls(schedule):
    with pytest.raises(UserError, match=f"--decay-power goes with .* got {schedule}"):
        make_config(schedule=schedule, decay_power=2.0)
