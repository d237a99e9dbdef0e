"""Lightning's Trainer and Fabric with cpfast, compared with loops written by hand."""

from __future__ import annotations

import copy
import csv
import difflib
import functools
import importlib.util
import json
import pathlib
import pickle
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

import cpfast
from cpfast.integrations.course import Course
from cpfast.recipes import LearningRate
from cpfast.schedules import FractionLR, linear

if find_spec("lightning"):
    import lightning.pytorch as pl
    from lightning.fabric import Fabric
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from support import toy_lightning as toys
    from support.toy_lightning import BATCH, EPOCHS, N, Save, Toy, by_hand, ever_fewer, made, same

    from cpfast.integrations.lightning import CriticalPeriodCallback, prepare
else:
    pytest.skip("needs lightning", allow_module_level=True)  # settings are asked for below

if find_spec("torchdata"):
    from torchdata.stateful_dataloader import StatefulDataLoader

pytestmark = [pytest.mark.needs("lightning"), pytest.mark.usefixtures("one_thread")]
SUPPORT = pathlib.Path(__file__).parents[1] / "support"
PAGE = SUPPORT.parents[1] / "docs" / "lightning.md"


@pytest.fixture
def silent():
    """What is right warns of nothing, but for what Lightning says of any loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in (
            ".*treespec, LeafSpec",
            "'set_vital' is deprecated",
            ".*does not have many workers",
            ".*is smaller than the logging interval",
            "You defined a `validation_step` but have no `val_dataloader`",
            "You're resuming from a checkpoint that ended before the epoch ended",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


@functools.cache
def own(pruned, accumulate=1):
    """By hand: with a recipe whose epochs shrink, or by a policy whose epochs grow in the end."""
    return by_hand(ever_fewer() if pruned else None, policy_of(pruned), accumulate)


def policy_of(pruned):
    return "infobatch" if pruned else "random"


def parts_of(pruned, **options):
    return made(ever_fewer() if pruned else None, policy_of(pruned), **options)


def fit(parts, *callbacks, ckpt_path=None, loader=None, **options):
    trainer = toys.trainer(parts.callback, *callbacks, **options)
    loader = parts.loader if loader is None else loader
    trainer.fit(parts.module, loader, toys.validation(), ckpt_path=ckpt_path)
    return trainer


def rotation_of(whole):
    return {f"net.{name}": value for name, value in whole.rotation.items()}


# --- the epochs -----------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("pruned", [True, False], ids=["shrinking", "growing"])
def test_it_equals_a_loop_written_by_hand(pruned, accumulate, silent):
    parts, whole = parts_of(pruned), own(pruned, accumulate)
    trainer = fit(parts, accumulate_grad_batches=accumulate)
    assert parts.module.batches == whole.batches
    assert same(parts.module.net, whole.net)
    assert parts.callback.rotation.compute() == rotation_of(whole)
    assert parts.callback.course.detector.end_epoch == 2
    assert trainer.global_step == sum(-(-len(b) // accumulate) for b in whole.batches.values())
    # validated, before the training too, by pruner.loss, on samples of the same indices
    assert parts.module.pruner.scores.equal(whole.pruner.scores)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


class Makes(toys.Toy):
    """A module that makes its loader, with a new sampler each time."""

    def __init__(self, parts, **options):
        super().__init__(parts.module.pruner)
        self.dataset, self.options, self.samplers = parts.loader.dataset, options, []

    def train_dataloader(self):
        self.samplers.append(cpfast.PrunedSampler(self.pruner))
        return DataLoader(self.dataset, BATCH, sampler=self.samplers[-1], **self.options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["given", "module", "datamodule"])
def test_a_recipe_holds_from_the_first_epoch_on_wherever_the_loader_is_made(place, workers):
    parts, whole = parts_of(True, workers=workers), own(True)
    maker = Makes(parts, num_workers=workers)
    trainer = toys.trainer(parts.callback, epochs=1)
    with pytest.warns(UserWarning, match="max_epochs: 1, and the recipe, .* was made for 6"):
        if place == "given":
            trainer.fit(maker, parts.loader)
        elif place == "module":
            trainer.fit(maker)
        else:
            data = pl.LightningDataModule()
            data.train_dataloader = maker.train_dataloader
            trainer.fit(maker, datamodule=data)
    assert maker.batches[0] == whole.batches[0]
    assert sum(map(len, maker.batches[0])) == 2 * N


def test_a_loader_that_is_made_anew_each_epoch_is_followed(silent):
    parts, whole = parts_of(True), own(True)
    maker = Makes(parts)
    toys.trainer(parts.callback, reload_dataloaders_every_n_epochs=1).fit(maker)
    assert len(maker.samplers) == EPOCHS
    assert maker.batches == whole.batches


@pytest.mark.parametrize("pruned", [True, False], ids=["shrinking", "growing"])
def test_what_monitors_a_metric_sees_every_epoch(pruned, tmp_path, silent):
    parts = parts_of(pruned)
    saves = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=-1)
    fit(parts, saves)
    assert parts.module.validated == list(range(EPOCHS))
    assert len(saves.best_k_models) == EPOCHS

    parts = parts_of(pruned)
    stops = pl.callbacks.EarlyStopping("val_loss", min_delta=100.0, patience=3)
    fit(parts, stops)
    assert parts.module.validated == list(range(4))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"val_check_interval": 0.5}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        ({"val_check_interval": 10}, list(range(EPOCHS))),  # of batches; four epochs have 7
        ({"check_val_every_n_epoch": 2}, [1, 3, 5]),
        ({"val_check_interval": 11, "check_val_every_n_epoch": None}, [0, 2, 3, 5]),
    ],
)
def test_it_is_validated_as_often_as_was_asked_for(options, expected, silent):
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=1)
    parts = made(policy="random")
    # 13 batches, 7 in four epochs, 13 in the last
    recipe = cpfast.Recipe(EPOCHS, [cpfast.recipes.Prune(window=cpfast.Window("after"))])
    parts = parts._replace(callback=CriticalPeriodCallback(detector, recipe=recipe))
    fit(parts, **options)
    assert [len(batches) for batches in parts.module.batches.values()] == [13, 7, 7, 7, 7, 13]
    assert parts.module.validated == expected


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_progress_bar_has_the_batches_of_its_epoch(bar, is_first, capsys):
    totals = []

    class Bar(getattr(pl.callbacks, bar)):
        def on_train_epoch_start(self, trainer, *args):
            super().on_train_epoch_start(trainer, *args)
            if bar == "TQDMProgressBar":
                totals.append(self.train_progress_bar.total)
            else:
                totals.append(self.progress.tasks[self.train_progress_bar_id].total)

    parts, whole = parts_of(True), own(True)
    callbacks = [Bar(), parts.callback] if is_first else [parts.callback, Bar()]
    toys.trainer(*callbacks, enable_progress_bar=True).fit(parts.module, parts.loader)
    assert totals == [len(batches) for batches in whole.batches.values()]


def test_a_loader_by_batch_sampler_is_followed_in_one_process(silent):
    parts, whole = parts_of(True), own(True)
    batches = BatchSampler(parts.loader.sampler, BATCH, drop_last=False)
    fit(parts, loader=DataLoader(parts.loader.dataset, batch_sampler=batches))
    assert parts.module.batches == whole.batches


def test_a_limit_of_batches_is_warned_of_and_counted():
    parts = made(policy="random")
    with pytest.warns(UserWarning) as warned:
        fit(parts, limit_train_batches=5)
    messages = [str(w.message) for w in warned]
    assert any("limit_train_batches: 5 leaves out of each epoch" in m for m in messages)
    assert any("planned 101 samples, and the losses of 80 were recorded" in m for m in messages)
    assert [len(batches) for batches in parts.module.batches.values()] == [5] * EPOCHS
    assert parts.module.pruner.samples_seen == parts.module.pruner._earlier["seen"] + 80 == 480
    assert parts.module.validated == list(range(EPOCHS))


def test_a_limit_of_one_batch_is_no_share():
    parts = made(policy="random")
    with pytest.warns(UserWarning, match="limit_train_batches: 1 leaves out"):
        fit(parts, limit_train_batches=1)
    assert [len(batches) for batches in parts.module.batches.values()] == [1] * EPOCHS


def test_a_share_of_the_batches_is_taken_of_each_epoch():
    parts = parts_of(True)
    with pytest.warns(UserWarning, match="limit_train_batches: 0.5"):
        fit(parts, limit_train_batches=0.5)
    lengths = [len(batches) for batches in parts.module.batches.values()]
    assert lengths[:2] == [13, 13] and lengths[2] < 7 and lengths[-1] == 6


def test_without_a_pruner_the_training_is_lightnings_own(silent):
    def train(*callbacks):
        module = Toy()
        loader = DataLoader(
            cpfast.IndexedDataset(toys.data()), BATCH, shuffle=True,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        torch.manual_seed(5)
        toys.trainer(*callbacks).fit(module, loader, toys.validation())
        return module, torch.rand(1)

    callback = CriticalPeriodCallback(cpfast.CriticalPeriodDetector("slope45", EPOCHS))
    (module, drawn), (plain, drawn_then) = train(callback), train()
    assert module.batches == plain.batches and same(module, plain)
    assert drawn == drawn_then
    assert len(callback.course.detector.history) == EPOCHS
    assert callback.course.sampler is None


def test_a_trial_run_is_not_warned_of(silent):
    parts = parts_of(True)
    fit(parts, fast_dev_run=True)
    assert [len(batches) for batches in parts.module.batches.values()] == [1]


def test_learning_rates_change_within_the_step_alone():
    during = cpfast.Window("during")
    parts = made(cpfast.Recipe(EPOCHS, [LearningRate(0.5, during)]))
    outside = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            outside.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(parts, Looks())
    inside = parts.module.rates
    first = len(parts.module.batches[0]) + len(parts.module.batches[1])
    assert set(inside[:first]) == {0.05} and set(inside[first:]) == {0.1}
    assert set(outside) == {0.1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_prepared_in_one_call(workers):
    options = {"batch_size": BATCH, "num_workers": workers, "persistent_workers": workers > 0}
    shuffled = DataLoader(toys.data(), shuffle=True, drop_last=True, **options)
    watch, loader = prepare(shuffled, EPOCHS, repeats=2)
    module = Toy(watch.pruner)
    toys.trainer(watch).fit(module, loader)

    recipe = cpfast.Recipe.named("detector+prune", EPOCHS, repeats=2)
    detector = cpfast.CriticalPeriodDetector("slope45", EPOCHS)
    pruner = cpfast.DataPruner(N, EPOCHS)
    sampler = cpfast.PrunedSampler(pruner)
    by_parts = DataLoader(
        cpfast.IndexedDataset(toys.data()), BATCH, sampler=sampler, drop_last=True
    )
    parts = Toy(pruner)
    toys.trainer(CriticalPeriodCallback(detector, recipe=recipe)).fit(parts, by_parts)
    assert module.batches == parts.batches and same(module.net, parts.net)
    assert len(module.batches[0]) == 2 * N // BATCH
    assert all(len(batch) == BATCH for batch in module.batches[0])
    with pytest.raises(ValueError, match="expected one that visits each sample in random order"):
        prepare(DataLoader(toys.data(), BATCH), EPOCHS)
    with pytest.raises(RuntimeError, match="has no pruner"):
        _ = CriticalPeriodCallback().pruner


def test_the_page_shows_the_lines_that_change():
    root = SUPPORT.parents[1]
    before, after = (
        [line for line in (root / name).read_text().splitlines() if line]
        for name in ("examples/plain/lightning_digits.py", "examples/lightning_digits.py")
    )
    diff = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    (shown,) = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert sorted(shown.splitlines()) == sorted(line[0] + line[2:] for line in diff)
    assert sum(line[0] == "+" for line in diff) <= 5


# --- schedules ------------------------------------------------------------------------------


def fraction_lr(module, optimizer):
    return {"scheduler": FractionLR(optimizer, linear()), "interval": "step"}


def one_cycle(module, optimizer):
    steps = module.trainer.estimated_stepping_batches
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    return {"scheduler": cycle, "interval": "step"}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("pruned", [True, False], ids=["shrinking", "growing"])
def test_a_fraction_of_the_training_is_that_of_its_epochs(pruned, accumulate, silent):
    parts = parts_of(pruned, schedule=fraction_lr)
    fit(parts, accumulate_grad_batches=accumulate)
    done = [
        (epoch + step / steps) / EPOCHS
        for epoch, batches in parts.module.batches.items()
        for steps in [-(-len(batches) // accumulate)]
        for step in range(steps)
    ]
    assert parts.module.rates == pytest.approx([0.1 * (1 - fraction) for fraction in done])


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_fraction_of_steps_or_by_epochs(interval, silent):
    def schedule(module, optimizer):
        return {"scheduler": FractionLR(optimizer, linear()), "interval": interval}

    parts = made(policy="random", schedule=schedule)
    fit(parts, epochs=-1, max_steps=40)
    rates = parts.module.rates
    if interval == "step":
        assert rates == pytest.approx([0.1 * (1 - step / 40) for step in range(40)])
    else:
        assert rates == pytest.approx([0.1 * (1 - step // 7 * 7 / 40) for step in range(40)])


@pytest.mark.parametrize("pruned", [True, False], ids=["shrinking", "growing"])
def test_one_cycle_ends_with_the_training(pruned, silent):
    parts = parts_of(pruned, schedule=one_cycle)
    fit(parts)
    batches = parts.module.batches.values()
    steps = len(parts.module.batches[0]) * EPOCHS  # as estimated
    optimizer = toys.optimizer_of(toys.network())
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    starts = [sum(map(len, list(batches)[:epoch])) for epoch in range(EPOCHS)]
    of_epochs = [parts.module.rates[start] for start in starts]
    assert of_epochs == pytest.approx(expected[:: steps // EPOCHS])
    assert max(parts.module.rates) > 0.095 and parts.module.rates[-1] < 0.002


def test_one_cycle_of_epochs_of_one_length_is_torchs_own(silent):
    def train(callback, pruner):
        module = Toy(pruner, one_cycle)
        sampler = cpfast.PrunedSampler(pruner)
        loader = DataLoader(cpfast.IndexedDataset(toys.data()), BATCH, sampler=sampler)
        toys.trainer(*callback).fit(module, loader)
        return module

    new = functools.partial(cpfast.DataPruner, N, num_epochs=EPOCHS, anneal=0.0)
    plain, module = train([], new()), train([CriticalPeriodCallback()], new())
    assert module.rates == pytest.approx(plain.rates, rel=1e-12)
    assert module.batches == plain.batches


def test_a_schedule_that_counts_steps_is_warned_of():
    def schedule(module, optimizer):
        steps = module.trainer.estimated_stepping_batches
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"scheduler": cosine, "interval": "step"}

    parts = made(policy="random", schedule=schedule)
    with pytest.warns(UserWarning, match="CosineAnnealingLR counts steps.*FractionLR"):
        fit(parts)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda module, optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
        lambda module, optimizer: {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            "monitor": "val_loss",
        },
    ],
)
def test_a_schedule_by_epochs_is_left_alone(schedule, silent):
    parts = made(policy="random", schedule=schedule)
    fit(parts)
    assert len(set(parts.module.rates)) in (1, EPOCHS)


# --- a resume -------------------------------------------------------------------------------

SAVED = {  # hook, epoch, batch (-1 is the last one), the first batch that is left of the epoch
    "the end of an epoch": ("on_train_epoch_end", 2, None, None),
    "the end of the first epoch": ("on_train_epoch_end", 0, None, None),
    "after a batch": ("on_train_batch_end", 3, 4, 5),
    "after a batch of the first epoch": ("on_train_batch_end", 0, 2, 3),
    "after the last batch, the next epoch is longer": ("on_train_batch_end", 4, -1, None),
    "after the last batch, the next epoch is shorter": ("on_train_batch_end", 1, -1, None),
    "after a validation": ("on_validation_end", 3, None, None),
}


def loader_of(name):
    return DataLoader if name == "plain" else StatefulDataLoader


PLAIN_AND_STATEFUL = [
    "plain",
    pytest.param("stateful", marks=pytest.mark.needs("torchdata")),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of one training's, of which none disturbs it."""

    @functools.cache
    def folder(pruned, loader="plain", workers=0, **options):
        folder = tmp_path_factory.mktemp("checkpoints")
        parts = parts_of(pruned, loader=loader_of(loader), workers=workers)
        saves = []
        for name, (hook, epoch, batch, _) in SAVED.items():
            last = len(own(pruned).batches[epoch]) - 1
            path = folder / f"{name}.ckpt"
            saves.append(Save(path, hook, epoch, last if batch == -1 else batch))
        fit(parts, *saves, **options)
        assert same(parts.module.net, own(pruned).net)
        return folder

    return folder


def check_resumed(parts, saved, pruned):
    _, epoch, _, first = SAVED[saved]
    whole = own(pruned)
    left = {e: batches for e, batches in whole.batches.items() if e > epoch}
    if first is not None:
        left[epoch] = whole.batches[epoch][first:]
    assert parts.module.batches == left
    assert same(parts.module.net, whole.net)
    assert parts.callback.rotation.compute() == rotation_of(whole)
    assert parts.module.validated[-len(left) :] == sorted(left)
    course = parts.callback.course
    assert course.completed == EPOCHS and course.detector.end_epoch == 2
    trained = sum(len(batch) for batches in whole.batches.values() for batch in batches)
    assert parts.module.pruner.samples_seen == trained


@pytest.mark.parametrize("pruned", [True, False], ids=["shrinking", "growing"])
@pytest.mark.parametrize("loader", PLAIN_AND_STATEFUL)
@pytest.mark.parametrize("saved", SAVED)
def test_a_resume_equals_the_undisturbed_training(saved, loader, pruned, checkpoints, silent):
    parts = parts_of(pruned, loader=loader_of(loader))
    fit(parts, ckpt_path=checkpoints(pruned, loader) / f"{saved}.ckpt")
    check_resumed(parts, saved, pruned)


@pytest.mark.parametrize("loader", PLAIN_AND_STATEFUL)
@pytest.mark.parametrize("saved", ["the end of an epoch", "after a batch"])
def test_what_workers_prefetch_is_of_the_right_plan(saved, loader, checkpoints, silent):
    parts = parts_of(False, loader=loader_of(loader), workers=2)
    fit(parts, ckpt_path=checkpoints(False, loader, 2) / f"{saved}.ckpt")
    check_resumed(parts, saved, False)


def test_workers_may_have_fetched_all_of_a_plan_before_it_is_chosen(silent):
    parts = made(policy="random")
    fit(parts, loader=DataLoader(parts.loader.dataset, 64, sampler=parts.loader.sampler,
                                 num_workers=2))  # fmt: skip
    assert [len(batches) for batches in parts.module.batches.values()] == [2, 2, 2, 2, 2, 4]


@pytest.mark.parametrize("saved", SAVED)
def test_a_resume_by_steps_equals_the_undisturbed_training(saved, checkpoints, silent):
    options = {"epochs": -1, "max_steps": sum(map(len, own(False).batches.values()))}
    parts = parts_of(False)
    fit(parts, ckpt_path=checkpoints(False, **options) / f"{saved}.ckpt", **options)
    check_resumed(parts, saved, False)


def logged(folder):
    """The steps of a CSVLogger at which was logged what was kept."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [
            (int(row["step"]), float(row["cpfast/kept"]))
            for row in csv.DictReader(file)
            if row["cpfast/kept"]
        ]


def test_a_resume_of_a_resume(checkpoints, tmp_path, silent):
    """Of an epoch's last batch, which Lightning counts as none of the next."""
    first = checkpoints(True) / "after the last batch, the next epoch is shorter.ckpt"
    loggers = [pl.loggers.CSVLogger(tmp_path / name, version="") for name in "abc"]
    options = {"log_every_n_steps": 1000}
    whole, second, third = parts_of(True), parts_of(True), parts_of(True)
    fit(whole, logger=loggers[0], **options)
    save = Save(tmp_path / "x.ckpt", "on_train_batch_end", 3, 2)
    fit(second, save, ckpt_path=first, logger=loggers[1], **options)
    check_resumed(second, first.stem, True)
    fit(third, ckpt_path=tmp_path / "x.ckpt", logger=loggers[2], **options)
    assert third.module.batches[3] == whole.module.batches[3][3:]
    assert third.module.validated == [3, 4, 5]
    assert same(third.module.net, whole.module.net)
    undisturbed = logged(tmp_path / "a")
    assert len(undisturbed) == EPOCHS
    assert logged(tmp_path / "b") == undisturbed[1:]  # of the last batch's epoch too
    assert logged(tmp_path / "c") == undisturbed[3:]


def test_a_plateau_is_looked_for_in_each_epoch_after_a_resume(tmp_path):
    def plateau(module, optimizer):
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=100.0, threshold_mode="abs"
        )
        return {"scheduler": scheduler, "monitor": "val_loss"}

    parts, again = (made(policy="random", schedule=plateau) for _ in range(2))
    fit(parts, Save(tmp_path / "x.ckpt", "on_train_batch_end", 1, 6))
    fit(again, ckpt_path=tmp_path / "x.ckpt")
    of_epochs = list(dict.fromkeys(again.module.rates))
    assert of_epochs == [0.1 / 2**epoch for epoch in range(EPOCHS - 2)]


@pytest.mark.parametrize("loader", PLAIN_AND_STATEFUL)
@pytest.mark.parametrize("criterion", ["slope45", "path_efficiency", "gradient_norm_growth"])
def test_a_resume_after_a_validation_within_an_epoch(criterion, loader, tmp_path, silent):
    class SaveHalfway(pl.callbacks.Checkpoint):
        def on_validation_end(self, trainer, module):
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            if trainer.current_epoch == 3 and done == 3:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    options = {"val_check_interval": 0.5}
    new = functools.partial(
        made, policy="random", criterion=criterion, loader=loader_of(loader), schedule=fraction_lr
    )
    whole, parts = new(), new()
    fit(whole, SaveHalfway(), **options)
    fit(parts, ckpt_path=tmp_path / "x.ckpt", **options)
    left = {e: b for e, b in whole.module.batches.items() if e > 3}
    left[3] = whole.module.batches[3][3:]
    assert parts.module.batches == left
    assert parts.module.validated == [3, 4, 4, 5, 5]
    assert same(parts.module.net, whole.module.net)
    assert parts.module.rates == whole.module.rates[-len(parts.module.rates) :]
    mine, theirs = (one.callback.course.detector for one in (parts, whole))
    assert len(mine.history) == EPOCHS and repr(mine.history) == repr(theirs.history)


@pytest.mark.needs("torchdata")
def test_a_loader_that_was_asked_for_too_early_resumes(tmp_path, silent):
    """estimated_stepping_batches makes the loader before its state is there."""
    new = functools.partial(parts_of, False, loader=StatefulDataLoader, schedule=one_cycle)
    whole, parts = new(), new()
    fit(whole, Save(tmp_path / "x.ckpt", "on_train_batch_end", 3, 4))
    fit(parts, ckpt_path=tmp_path / "x.ckpt")
    assert parts.module.batches[3] == whole.module.batches[3][5:]
    assert same(parts.module.net, whole.module.net)
    assert parts.module.rates == whole.module.rates[-len(parts.module.rates) :]


def test_batches_of_unknown_sizes_are_not_resumed_within_an_epoch(tmp_path):
    class Batches(BatchSampler):
        def __iter__(self):
            yield from super().__iter__()

    def by_batches(parts):
        batches = Batches(parts.loader.sampler, BATCH, drop_last=False)
        return DataLoader(parts.loader.dataset, batch_sampler=batches)

    parts = made(policy="random")
    saves = [
        Save(tmp_path / "end.ckpt", "on_train_epoch_end", 1),
        Save(tmp_path / "within.ckpt", "on_train_batch_end", 2, 3),
    ]
    fit(parts, *saves, loader=by_batches(parts))
    again = made(policy="random")
    with pytest.raises(RuntimeError, match="how many samples the batches of Batches had"):
        fit(again, loader=by_batches(again), ckpt_path=tmp_path / "within.ckpt")
    again = made(policy="random")
    fit(again, loader=by_batches(again), ckpt_path=tmp_path / "end.ckpt")
    assert same(again.module.net, parts.module.net)


def test_a_resume_with_nothing_left_still_has_the_state(tmp_path):
    parts = parts_of(True)
    fit(parts, Save(tmp_path / "x.ckpt", "on_train_epoch_end", EPOCHS - 1))
    again = parts_of(True)
    fit(again, ckpt_path=tmp_path / "x.ckpt")
    assert again.module.batches == {}
    assert again.callback.course.detector.end_epoch == 2
    assert again.module.pruner.scores.equal(parts.module.pruner.scores)


def test_a_second_fit_goes_on(silent):
    parts, whole = made(policy="random"), own(False)
    trainer = fit(parts)
    end = parts.callback.rotation.compute()
    fit_again = functools.partial(trainer.fit, parts.module, parts.loader, toys.validation())
    fit_again()  # of which nothing is left
    assert parts.module.batches == whole.batches and parts.callback.rotation.compute() == end


def test_a_second_fit_of_more_epochs_goes_on():
    parts, whole = made(policy="random"), own(False)
    with pytest.warns(UserWarning, match="max_epochs: 3, and the recipe, .* was made for 6"):
        trainer = fit(parts, epochs=3)
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(parts.module, parts.loader, toys.validation())
    assert parts.module.batches == whole.batches  # which no weights have a part in
    assert parts.module.validated == list(range(EPOCHS))
    assert [epoch for epoch, _ in parts.callback.course.detector.history] == [1, 2, 3, 4, 5, 6]


def test_the_state_is_plain(checkpoints):
    path = checkpoints(True) / "after a batch.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"]["CriticalPeriodCallback"]
    callback = parts_of(True).callback
    callback.load_state_dict(state)
    assert callback.state_dict() is state
    with pytest.raises(ValueError, match="state_dict"):
        callback.load_state_dict({"course": 1})


def test_evaluation_leaves_the_training_where_it_is(checkpoints):
    parts = parts_of(True)
    trainer = fit(parts)
    before = copy.deepcopy(parts.callback.state_dict())
    path = checkpoints(True) / "the end of an epoch.ckpt"
    trainer.validate(parts.module, toys.validation(), ckpt_path=path, verbose=False)
    trainer.test(parts.module, toys.validation(), ckpt_path=path, verbose=False)
    assert repr(parts.callback.state_dict()) == repr(before)
    parts.callback.load_state_dict(before)  # by hand, it is listened to again
    assert parts.callback.state_dict() is before
    assert trainer.validate_loop.max_batches == [2]


@pytest.mark.parametrize("is_first", [True, False])
def test_what_averages_the_weights_may_stand_anywhere(is_first, tmp_path):
    whole = own(True)
    average = pl.callbacks.EMAWeightAveraging

    def train(*saves, **options):
        parts = parts_of(True)
        callbacks = [average(), parts.callback] if is_first else [parts.callback, average()]
        trainer = toys.trainer(*callbacks, *saves)
        trainer.fit(parts.module, parts.loader, toys.validation(), **options)
        return parts

    parts = train(Save(tmp_path / "x.ckpt", "on_train_epoch_end", 2))
    assert parts.callback.rotation.compute() == rotation_of(whole)
    assert not same(parts.module.net, whole.net)  # but their average
    again = train(ckpt_path=tmp_path / "x.ckpt")
    assert again.callback.rotation.compute() == rotation_of(whole)


@pytest.mark.parametrize("finder", ["LearningRateFinder", "BatchSizeFinder"])
def test_what_is_tried_before_the_training_leaves_nothing_behind(finder):
    class Tuned(Toy):
        def train_dataloader(self):
            return DataLoader(parts.loader.dataset, self.batch_size, sampler=parts.loader.sampler)

        def val_dataloader(self):
            return toys.validation()

        def on_train_start(self):
            self.batches.clear()

    options = {
        "LearningRateFinder": {"num_training_steps": 20, "update_attr": False},
        "BatchSizeFinder": {"steps_per_trial": 2, "max_trials": 2},
    }[finder]
    parts, whole = made(policy="random"), own(False)
    pruner, detector = parts.module.pruner, parts.callback.course.detector
    module = Tuned(pruner)
    module.batch_size = BATCH
    callback = CriticalPeriodCallback(detector, pruner=pruner)
    toys.trainer(callback, getattr(pl.callbacks, finder)(**options)).fit(module)
    trained = {e: [i for b in batches for i in b] for e, batches in module.batches.items()}
    assert trained == {e: [i for b in batches for i in b] for e, batches in whole.batches.items()}
    assert pruner.samples_seen == sum(map(len, trained.values()))


# --- what is refused ------------------------------------------------------------------------


def test_what_would_go_wrong_unnoticed_is_refused(tmp_path):
    parts = made(policy="random")
    dataset, pruner = parts.loader.dataset, parts.module.pruner
    shuffled = DataLoader(dataset, BATCH, shuffle=True)

    def refuses(error, match, callback=None, loader=None, module=None, **options):
        callback = parts_of(False).callback if callback is None else callback
        module = made(policy="random").module if module is None else module
        loader = made(policy="random").loader if loader is None else loader
        with pytest.raises(error, match=match):
            toys.trainer(callback, **options).fit(module, loader)

    owns = CriticalPeriodCallback(pruner=pruner)
    refuses(RuntimeError, "do not come from a PrunedSampler", owns, shuffled)
    repeats = cpfast.Recipe(EPOCHS, [cpfast.recipes.Repeats(3)])
    refuses(
        RuntimeError, "do not come from a PrunedSampler",
        CriticalPeriodCallback(recipe=repeats), shuffled,
    )  # fmt: skip
    refuses(RuntimeError, "do not come from a PrunedSampler", overfit_batches=2)
    refuses(ValueError, "expected a detector, a pruner", CriticalPeriodCallback(), shuffled)
    refuses(ValueError, "its pruner is another one", CriticalPeriodCallback(pruner=pruner))
    two = {"a": made().loader, "b": made().loader}
    refuses(RuntimeError, "2 PrunedSamplers, and a training plans by one", loader=two)
    third = cpfast.PrunedSampler(cpfast.DataPruner(N, num_epochs=EPOCHS), 3, 1)
    refuses(
        RuntimeError, "takes share 1 of 3, and this process of the trainer is 0 of 1",
        loader=DataLoader(dataset, BATCH, sampler=third),
    )  # fmt: skip
    refuses(ValueError, "max_epochs: 9, and the recipe, .* was made for 6", epochs=9)
    chosen = made(policy="selective_backprop")
    refuses(ValueError, "selects within the batches", chosen.callback, chosen.loader)
    few = cpfast.DataPruner(N, num_epochs=EPOCHS, policy="random", keep=0.05)
    drops = DataLoader(dataset, BATCH, sampler=cpfast.PrunedSampler(few), drop_last=True)
    later = cpfast.Recipe(EPOCHS, [cpfast.recipes.Prune(window=cpfast.Window(begin=0.5))])
    refuses(
        RuntimeError, "10 samples are planned for epoch 3, which make no batch",
        CriticalPeriodCallback(recipe=later), drops,
    )  # fmt: skip

    class FSDPStrategy(SingleDeviceStrategy):
        pass

    refuses(RuntimeError, "FSDPStrategy hides the weights", strategy=FSDPStrategy("cpu"))


def test_a_callback_is_of_one_training(tmp_path):
    parts = made(policy="random")
    fit(parts)
    with pytest.raises(RuntimeError, match="been through 6 epochs, and the training begins with"):
        fit(parts)
    plain = Toy(cpfast.DataPruner(N))
    loader = DataLoader(parts.loader.dataset, BATCH)
    toys.trainer(Save(tmp_path / "x.ckpt", "on_train_batch_end", 0, 3), epochs=1).fit(plain, loader)
    with pytest.raises(ValueError, match="of a training without CriticalPeriodCallback"):
        fit(made(policy="random"), ckpt_path=tmp_path / "x.ckpt")


def test_another_version_that_lacks_a_name_is_named(monkeypatch):
    parts = made(policy="random")
    monkeypatch.delattr(pl.Trainer, "distributed_sampler_kwargs")
    with pytest.raises(
        RuntimeError, match=r"lightning 2\..*: trainer.distributed_sampler_kwargs is"
    ):
        fit(parts)


def test_without_the_library_the_extra_is_named(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    source = importlib.util.find_spec("cpfast.integrations.lightning").origin
    spec = importlib.util.spec_from_file_location("anew", source)
    with pytest.raises(ImportError, match=r"pip install 'cpfast\[lightning\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- policies, pickles, logs ----------------------------------------------------------------


class Scores(toys.Toy):
    def score_step(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        (x, y), index = batch
        self.scored.extend(index.tolist())
        return self.net(x), y, index

    scored: list[int]


def scoring(*callbacks, **options):
    parts = made(policy="kakurenbo")
    module = Scores(parts.module.pruner)
    module.scored = []
    trainer = toys.trainer(parts.callback, *callbacks)
    trainer.fit(module, parts.loader, toys.validation(), **options)
    return module


def test_samples_that_were_left_out_are_scored_again(tmp_path, silent, caplog):
    module = scoring(Save(tmp_path / "x.ckpt", "on_train_batch_end", 2, 10))

    net, dataset = toys.network(), toys.data()
    optimizer = toys.optimizer_of(net)
    pruner = cpfast.DataPruner(N, num_epochs=EPOCHS, policy="kakurenbo", anneal=0.8)
    hidden = {}
    for epoch in range(EPOCHS):
        plan = pruner.prepare(epoch)
        for start in range(0, len(plan), BATCH):
            index = plan.batch(start, BATCH)
            x, y = dataset[index]
            optimizer.zero_grad()
            pruner.loss(net(x), y, index).backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * pruner.lr
            optimizer.step()
        hidden[epoch] = plan.rescored.tolist()
        for index in plan.rescored.split(BATCH):
            x, y = dataset[index]
            with torch.no_grad():
                pruner.score(net(x), y, index)
    assert len(module.batches[2]) == 11 and hidden[2]
    assert module.scored == sum(hidden.values(), [])
    assert same(module.net, net) and module.training
    assert module.pruner.scores.equal(pruner.scores)
    assert not [r for r in caplog.records if "scored again" in r.getMessage()]

    again = scoring(ckpt_path=tmp_path / "x.ckpt")  # of the last batch, before they were scored
    assert again.scored == sum((samples for e, samples in hidden.items() if e >= 2), [])
    assert same(again.net, net)

    with pytest.raises(RuntimeError, match=r"give Toy a method score_step\(self, batch\)"):
        fit(made(policy="kakurenbo"))


def test_a_pruner_may_be_a_hyperparameter(tmp_path):
    class Keeps(Toy):
        def __init__(self, pruner):
            super().__init__(pruner)
            self.save_hyperparameters()

    parts = made(policy="random")
    module = Keeps(parts.module.pruner)
    saves = pl.callbacks.ModelCheckpoint(tmp_path)
    toys.trainer(parts.callback, saves).fit(module, parts.loader)
    loaded = Keeps.load_from_checkpoint(saves.best_model_path, weights_only=False)
    assert loaded.hparams.pruner.scores.equal(module.pruner.scores)


def test_a_callback_can_be_pickled_for_processes_that_are_spawned():
    parts = parts_of(True)
    fit(parts)
    copied = pickle.loads(pickle.dumps(parts.callback))
    assert repr(copied.state_dict()) == repr(parts.callback.state_dict())
    copy.deepcopy(parts.callback)


def tags(layers):
    return {"cpfast/rotation", "cpfast/kept", *(f"cpfast/rotation/{name}" for name in layers)}


@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_what_was_measured(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path, name=None, version="")
    parts, whole = parts_of(True), own(True)
    trainer = fit(parts, logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = rotation_of(whole)
    assert {t for t in events.Tags()["scalars"] if t.startswith("cpfast/")} == {
        *tags(names), "cpfast/period_end",
    }  # fmt: skip
    for name, value in names.items():
        scalars = events.Scalars(f"cpfast/rotation/{name}")
        assert len(scalars) == EPOCHS and scalars[-1].value == pytest.approx(value)
    lengths = [len(batches) for batches in whole.batches.values()]
    ends = [sum(lengths[: epoch + 1]) - 1 for epoch in range(EPOCHS)]
    assert [s.step for s in events.Scalars("cpfast/rotation")] == ends
    kept = [s.value for s in events.Scalars("cpfast/kept")]
    assert kept[0] == kept[-1] == 1 > kept[2] > 0
    assert [s.value for s in events.Scalars("cpfast/period_end")] == [2] * (EPOCHS - 1)
    assert trainer.callback_metrics["cpfast/period_end"] == 2


@pytest.mark.needs("wandb")
def test_wandb_shows_what_was_measured(tmp_path):
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True, project="cpfast")
    parts, whole = parts_of(True), own(True)
    fit(parts, logger=logger)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    for name, value in rotation_of(whole).items():
        assert summary[f"cpfast/rotation/{name}"] == pytest.approx(value)
    assert summary["cpfast/period_end"] == 2 and summary["cpfast/kept"] == 1
    assert list(tmp_path.rglob("*.wandb"))


def test_nothing_is_logged_where_nothing_is_to_be():
    parts = made(policy="random")
    detector = parts.callback.course.detector
    parts = parts._replace(callback=CriticalPeriodCallback(detector, log=False))
    trainer = fit(parts)
    assert not any(name.startswith("cpfast") for name in trainer.callback_metrics)
    assert len(parts.callback.course.detector.history) == EPOCHS


@pytest.mark.needs("codecarbon")
def test_energy_is_metered_and_goes_on_after_a_resume(tmp_path):
    def new():
        parts = made(policy="random")
        callback = CriticalPeriodCallback(parts.callback.course.detector, energy=True)
        return parts._replace(callback=callback)

    parts = new()
    trainer = fit(parts, Save(tmp_path / "x.ckpt", "on_train_epoch_end", EPOCHS - 2))
    used = float(trainer.callback_metrics["cpfast/energy_kwh"])
    assert used > 0
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    energy = state["callbacks"]["CriticalPeriodCallback"]["course"]["energy"]
    assert 0 < energy["kwh"] <= used * 1.001  # which is rounded
    energy["components"]["cpu"]["kwh"] += 1.0
    torch.save(state, tmp_path / "x.ckpt")
    trainer = fit(new(), ckpt_path=tmp_path / "x.ckpt")
    assert 1 < float(trainer.callback_metrics["cpfast/energy_kwh"]) < 1.1


@pytest.mark.needs("pytorch_lightning")
def test_the_library_by_its_older_name_takes_it_too():
    import pytorch_lightning as older

    class Module(older.LightningModule):
        def __init__(self, pruner):
            super().__init__()
            self.net, self.pruner, self.batches = toys.network(), pruner, {}

        def training_step(self, batch, batch_idx):
            (x, y), index = batch
            self.batches.setdefault(self.current_epoch, []).append(index.tolist())
            return self.pruner.loss(self.net(x), y, index)

        def configure_optimizers(self):
            return toys.optimizer_of(self.net)

    parts = parts_of(True)
    module = Module(parts.module.pruner)
    older.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[parts.callback],
    ).fit(module, parts.loader)  # fmt: skip
    assert module.batches == own(True).batches and same(module.net, own(True).net)


# --- Fabric, and several processes ----------------------------------------------------------


def in_fabric(state=None, stop=None, pruned=True):
    fabric = Fabric(accelerator="cpu", devices=1)
    detector = cpfast.CriticalPeriodDetector("fixed", EPOCHS, at=2)
    pruner = cpfast.DataPruner(N, num_epochs=EPOCHS, policy=policy_of(pruned), anneal=0.8)
    sampler = cpfast.PrunedSampler(pruner)
    course = Course(detector, recipe=ever_fewer() if pruned else None, sampler=sampler)
    loader = fabric.setup_dataloaders(
        DataLoader(cpfast.IndexedDataset(toys.data()), BATCH, sampler=sampler)
    )
    net = toys.network()
    model, optimizer = fabric.setup(net, toys.optimizer_of(net))
    saved = {"model": model, "optimizer": optimizer, "course": course}
    if state is not None:
        fabric.load(state, saved)
    batches = {}
    for epoch in course.epochs(model, optimizer):
        batches[epoch] = []
        for (x, y), index in loader:
            fabric.backward(pruner.loss(model(x), y, index))
            optimizer.step()
            optimizer.zero_grad()
            batches[epoch].append(index.tolist())
        if epoch == stop:
            return lambda path: fabric.save(path, saved)
    return batches, net


@pytest.mark.parametrize("stop", [0, 3])
def test_fabric_counts_epochs_by_itself_and_is_not_listened_to(stop, tmp_path, silent):
    whole = own(True)
    batches, net = in_fabric()
    assert batches == whole.batches and same(net, whole.net)
    in_fabric(stop=stop)(tmp_path / "x.ckpt")
    batches, net = in_fabric(tmp_path / "x.ckpt")
    assert batches == {e: b for e, b in whole.batches.items() if e > stop}
    assert same(net, whole.net)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = SUPPORT / "distributed_lightning.py"
    out = subprocess.run(
        [*torchrun, f"--nproc-per-node={request.param}", str(script), str(folder)],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]


@functools.cache
def of_all(ranks):
    return by_hand(policy="random", size=193, ranks=ranks)


def by_rank(ranks, run):
    """The batches of an epoch."""
    batches = [rank[run]["batches"] for rank in ranks]
    return {epoch: [of_rank[epoch] for of_rank in batches] for epoch in batches[0]}


def assert_same(mine, whole, ranks):
    """To the bit of two processes; of more, gloo adds up the gradients in an order of its own."""
    tolerance = 0.0 if len(ranks) == 2 else 1e-5
    torch.testing.assert_close(
        torch.as_tensor(mine), torch.as_tensor(whole), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("run", ["given", "inside", "fabric"])
def test_processes_share_each_plan(run, ranks):
    whole = of_all(len(ranks))
    assert by_rank(ranks, run) == {str(e): batches for e, batches in whole.batches.items()}
    for rank in ranks:
        for mine, theirs in zip(rank[run]["weights"], whole.net.parameters(), strict=True):
            assert_same(mine, theirs.detach(), ranks)


def test_processes_have_the_same_scores_and_rotations(ranks):
    whole = of_all(len(ranks))
    for rank in ranks:
        for run in ("given", "inside"):
            assert_same(rank[run]["scores"], whole.pruner.scores, ranks)
            rotation = rotation_of(whole)
            assert rank[run]["rotation"].keys() == rotation.keys()
            assert_same([*rank[run]["rotation"].values()], [*rotation.values()], ranks)
            assert rank[run]["end_epoch"] == 2
            assert rank[run]["validated"] == list(range(EPOCHS))


def test_processes_resume_within_an_epoch(ranks):
    whole = of_all(len(ranks))
    first = {2: 10, 4: 7}[len(ranks)] - sum(len(whole.batches[epoch][0]) for epoch in range(3))
    left = {e: batches for e, batches in whole.batches.items() if e > 3}
    left[3] = [batches[first:] for batches in whole.batches[3]]
    assert by_rank(ranks, "resumed") == {str(e): left[e] for e in sorted(left)}
    resumed, given = ranks[0]["resumed"], ranks[0]["given"]
    for name in ("end_epoch", "seen"):
        assert resumed[name] == given[name]
    assert resumed["validated"] == [3, 4, 5]
    assert_same(resumed["scores"], given["scores"], ranks)
    assert_same([*resumed["rotation"].values()], [*given["rotation"].values()], ranks)
    for mine, theirs in zip(resumed["weights"], given["weights"], strict=True):
        assert_same(mine, theirs, ranks)
    assert by_rank(ranks, "fabric resumed") == {
        str(e): batches for e, batches in whole.batches.items() if e > 2
    }
    weights = (ranks[1][run]["weights"] for run in ("fabric resumed", "fabric"))
    for mine, theirs in zip(*weights, strict=True):
        assert_same(mine, theirs, ranks)


def test_processes_are_warned_of_nothing_and_refused_what_goes_wrong(ranks):
    for rank in ranks:
        said = " ".join(rank["warnings"])
        assert "Pruner" not in said and "PrunedSampler" not in said and "cpfast" not in said
        assert "in several processes that of a batch_sampler=" in rank["batch_sampler"]
        assert "takes share 0 of 1, and this process of the trainer is" in rank["never"]
