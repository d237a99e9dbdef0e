"""More epochs for a run that was finished or stopped."""

import math

import pytest
import torch
from support.toy_training import assert_same, make_config, start, toy_data, without_times

from cpfast.detection import Criterion, criteria
from cpfast.train import extension, report, run
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def restored(config, folder):
    training, state = Training(config, toy_data()), folder.checkpoint()
    state.pop("metrics")
    run.load_state_dict(training, state)
    return training


def extended(folder, config, epochs):
    longer = extension.extended(config, epochs, folder.epochs())
    said = extension.extend(folder, longer)
    return longer, said


@pytest.mark.parametrize("method", ["full", "detector+prune", "prune", "freeze", "fast"])
@pytest.mark.parametrize("done", [2, 4])
def test_it_goes_on_as_a_run_of_so_many_epochs(tmp_path, method, done):
    config, data = make_config(epochs=4, method=method, schedule="cosine", eval_every=1), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=done)
    before = folder.metrics()
    longer, _ = extended(folder, config, 9)
    assert folder.config() == longer
    assert (longer.epochs, longer.extended_from) == (9, f"4@{done}")
    run.train(longer, data, folder)
    lines = folder.metrics()
    assert lines[:done] == before and [line["epoch"] for line in lines] == list(range(1, 10))
    assert folder.checkpoint()["epoch"] == 9
    title = report.run_table(report.summarise(folder)).splitlines()[0]
    assert title.endswith(f": 9 epochs (extended from 4 after epoch {done})")
    if method != "full":
        return
    for line in lines[done:]:  # of its last step
        steps = line["backward_samples"] // 8
        fraction = (line["epoch"] - 1 + (steps - 1) / steps) / 9
        assert line["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * fraction)) / 2)


@pytest.mark.parametrize("save_every", [1, 3])
def test_stopped_and_continued_it_equals_no_stop_to_the_bit(tmp_path, save_every):
    data = toy_data()
    config = make_config(
        epochs=4, method="detector+prune", criterion="slope45", at=None, watch="all", ema=0.9,
        schedule="cosine", save_every=save_every,
    )  # fmt: skip
    states = []
    for name, stops in (("whole", [9]), ("parts", [5, 7, 9])):
        folder = start(tmp_path / name, config)
        run.train(config, data, folder)
        extended(folder, config, 9)
        for stop in stops:
            run.train(folder.config(), data, folder, epochs=stop)
        states.append(folder.checkpoint())
        states[-1]["metrics"] = without_times(folder.metrics())
    assert_same(*states)


def test_it_may_be_extended_twice_and_before_it_began(tmp_path):
    config, data = make_config(epochs=2, at=1), toy_data()
    folder = start(tmp_path / "run", config)
    longer, _ = extended(folder, config, 3)
    assert longer.extended_from == "2@0"
    run.train(longer, data, folder)
    longest, said = extended(folder, longer, 5)
    assert longest.extended_from == "2@0,3@3"
    assert said == (
        "extended from 3 to 5 epochs after epoch 3: all that depends on the share of the training "
        "done goes on as in 5 epochs; the learning rate goes from 0.0005 to 0.005"
    )
    assert extension.describe(longest) == " (extended from 2 after epoch 0, from 3 after epoch 3)"
    assert extension.describe(config) == ""
    run.train(longest, data, folder)
    assert [extension.total_at(longest, epoch) for epoch in range(5)] == [3, 3, 3, 5, 5]
    # what is read again is the same run
    assert RunFolder(folder.path).config() == longest


def test_what_was_decided_stays_and_what_follows_is_judged_anew(tmp_path):
    """By a criterion that looks at how long the training is to be."""

    class Half(Criterion):
        """Ends at half of the training."""

        def measure(self, probe):
            return torch.zeros(1, dtype=torch.float64)

        def statistic(self, history, moment):
            return None

        def judge(self, history, moment):
            done = 2 * moment.epoch >= moment.total_epochs
            return f"half of {moment.total_epochs}" if done else None

    criteria.register("half", source="test")(Half)
    try:
        config, data = make_config(epochs=6, criterion="half", at=None), toy_data()
        ended, open_ = (start(tmp_path / name, config) for name in ("ended", "open"))
        run.train(config, data, ended, epochs=4)
        run.train(config, data, open_, epochs=2)
        for folder, wanted in ((ended, (3, "half of 6")), (open_, (6, "half of 12"))):
            longer, _ = extended(folder, config, 12)
            training = run.train(longer, data, folder, epochs=8)
            assert training.detector.end_epoch == wanted[0]
            assert training.detector.reason.startswith(wanted[1])
            again = restored(longer, folder)
            assert again.detector.end_epoch == wanted[0]
            assert again.detector.total_epochs == 12
    finally:
        del criteria._entries["half"]


def test_the_learning_rates_that_a_recipe_sees_are_those_that_were(tmp_path):
    config = make_config(epochs=2, at=1, schedule="linear")
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder)
    longer, _ = extended(folder, config, 4)
    assert restored(longer, folder).moment().lrs == (1.0, 0.5, 0.5)


def test_fewer_epochs_and_other_forms_are_refused(tmp_path):
    config = make_config(epochs=6)
    message = "^--epochs 5: the run has 6, of which 2 are trained; --resume can give it more, not"
    with pytest.raises(UserError, match=message):
        extension.extended(config, 5, 2)
    assert extension.extended(config, 6, 2) is config
    for wrong in ("", "6", "6@", "a@b", "6@6,"):
        with pytest.raises(UserError, match="^extended_from: expected TOTAL@EPOCH, got"):
            config.replace(extended_from=wrong)


def test_a_checkpoint_of_later_than_the_extension_is_of_another_run(tmp_path):
    config, data = make_config(epochs=4), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=2)
    longer = extension.extended(config, 8, 1)
    with pytest.raises(UserError, match=r"of another run \(it differs in epochs, extended_from\)"):
        run.train(longer, data, folder)
