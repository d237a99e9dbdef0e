"""--save-every: fewer checkpoints, and a run that is stopped between two ends as if undisturbed."""

import pytest
from support.toy_training import (
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    without_times,
)

from cpfast.train import run
from cpfast.train.runfolder import Fork, RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


class Stopped(Exception):
    pass


class Watcher:
    """A progress bar that notes the epochs of the checkpoint, and stops after one of them."""

    def __init__(self, folder, stop=None):
        self.folder, self.stop, self.saved = folder, stop, []

    def step(self, epochs):
        pass

    def epoch(self, metrics):
        self.saved.append(self.folder.epochs())
        if metrics["epoch"] == self.stop:
            raise Stopped


@pytest.mark.parametrize(
    ("every", "saved"), [(1, [1, 2, 3, 4, 5]), (2, [0, 2, 2, 4, 5]), (9, [0, 0, 0, 0, 5])]
)
def test_checkpoints_are_saved_every_so_many_epochs_and_after_the_last(tmp_path, every, saved):
    config = make_config(epochs=5, save_every=every)
    folder = start(tmp_path / "run", config)
    watcher = Watcher(folder)
    run.train(config, toy_data(), folder, progress=watcher)
    assert watcher.saved == saved
    assert len(folder.metrics()) == 5


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stopped_between_two_it_ends_as_if_undisturbed(tmp_path, stop):
    data = toy_data()
    config = make_config(epochs=7, save_every=3, eval_every=1, method="detector+prune")
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, data, whole)
    with pytest.raises(Stopped):
        run.train(config, data, parts, progress=Watcher(parts, stop))
    assert len(parts.metrics()) == stop and parts.epochs() == stop - stop % 3
    run.train(config, data, parts)
    assert_same_checkpoint(whole, parts)
    assert without_times(whole.metrics()) == without_times(parts.metrics())
    assert [line["epoch"] for line in parts.metrics()] == [1, 2, 3, 4, 5, 6, 7]
    for name in ("model.safetensors", "best.safetensors"):
        kept = [(folder.path / name) for folder in (whole, parts)]
        assert kept[0].exists() == kept[1].exists()
        assert not kept[0].exists() or kept[0].read_bytes() == kept[1].read_bytes()


def test_the_interval_may_change_and_the_weights_do_not(tmp_path):
    data = toy_data()
    config = make_config(epochs=4, save_every=3)
    whole = start(tmp_path / "whole", make_config(epochs=4))
    run.train(make_config(epochs=4), data, whole)
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=2)
    assert folder.epochs() == 2  # where a call is told to end
    run.train(config.replace(save_every=1), data, folder)
    assert without_times(whole.metrics()) == without_times(folder.metrics())


def test_what_is_forked_is_stored(tmp_path):
    config = make_config(epochs=4, save_every=4)
    folder = start(tmp_path / "run", config)
    branch = RunFolder(tmp_path / "branch")

    def forks(training):
        return [Fork(branch, config)] if training.epoch == 3 and not branch.is_run() else []

    run.train(config, toy_data(), folder, forks=forks)
    assert branch.epochs() == 3
    stopped = start(tmp_path / "stopped", config)
    run.train(config, toy_data(), stopped, until=lambda training: training.epoch == 3)
    assert stopped.epochs() == 3
