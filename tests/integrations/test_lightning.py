"""The callback for Lightning's Trainer: each test shows what goes wrong without it."""

from __future__ import annotations

import functools
import warnings

import pytest

pytestmark = pytest.mark.needs("lightning")
pytest.importorskip("lightning")

import lightning.pytorch as pl
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from support.toy_lightning import (
    EPOCHS, N, Save, by_hand, ever_fewer, made, same, trainer, validation,
)  # fmt: skip


@pytest.fixture
def silent():
    """What is right warns of nothing, but for what Lightning says of any loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in (
            ".*treespec, LeafSpec",
            "'set_vital' is deprecated",
            ".*does not have many workers",
            "You're resuming from a checkpoint that ended before the epoch ended",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("pruned", "policy"), [(False, "infobatch"), (False, "random"), (True, "infobatch")]
)
def test_it_equals_a_loop_written_by_hand(pruned, policy, accumulate):
    recipe = ever_fewer() if pruned else None
    callback, loader, module = made(recipe, policy)
    trainer(callback, accumulate_grad_batches=accumulate).fit(module, loader, validation())
    own = by_hand(recipe, policy, accumulate)
    assert module.batches == own.batches
    assert same(module.net, own.net)
    assert {f"net.{k}": v for k, v in own.rotation.items()} == callback.rotation.compute()
    assert module.validated == list(range(EPOCHS))
    assert own.pruner.scores.equal(module.pruner.scores)


SAVED = {  # hook, epoch, batch (-1 is the last one), what is left of the epoch from there on
    "the end of an epoch": ("on_train_epoch_end", 2, None, None),
    "the end of the first epoch": ("on_train_epoch_end", 0, None, None),
    "after a batch": ("on_train_batch_end", 3, 4, 5),
    "after a batch of the first epoch": ("on_train_batch_end", 0, 2, 3),
    "after the last batch, the next epoch is longer": ("on_train_batch_end", 4, -1, None),
    "after the last batch, the next epoch is shorter": ("on_train_batch_end", 1, -1, None),
    "after a validation": ("on_validation_end", 3, None, None),
}
LOADERS = {"plain": DataLoader, "stateful": StatefulDataLoader}


@functools.cache
def own(pruned, accumulate=1):
    """By hand: with a recipe that grows fewer, or by a policy whose epochs grow in the end."""
    return by_hand(
        ever_fewer() if pruned else None, "infobatch" if pruned else "random", accumulate
    )


def again(pruned, **options):
    recipe, policy = (ever_fewer(), "infobatch") if pruned else (None, "random")
    return made(recipe, policy, **options)


def saving(folder, pruned, **options):
    """Callbacks that save in all of these places."""
    for name, (hook, epoch, batch, _) in SAVED.items():
        last = len(own(pruned).batches[epoch]) - 1
        yield Save(folder / f"{name}.ckpt", hook, epoch, last if batch == -1 else batch)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of a training: saving it disturbs nothing."""

    @functools.cache
    def folder(pruned, loader="plain", workers=0, **options):
        folder = tmp_path_factory.mktemp("checkpoints")
        parts = again(pruned, loader=LOADERS[loader], workers=workers)
        fit(parts, *saving(folder, pruned), **options)
        assert same(parts.module.net, own(pruned).net)
        return folder

    return folder


def fit(parts, *callbacks, ckpt_path=None, **options):
    made = trainer(parts.callback, *callbacks, **options)
    made.fit(parts.module, parts.loader, validation(), ckpt_path=ckpt_path)
    return made


def check_resumed(parts, saved, pruned):
    _, epoch, _, skip = SAVED[saved]
    whole = own(pruned)
    left = {e: batches for e, batches in whole.batches.items() if e > epoch}
    if skip is not None:
        left[epoch] = whole.batches[epoch][skip:]
    assert parts.module.batches == left
    assert same(parts.module.net, whole.net)
    assert {f"net.{k}": v for k, v in whole.rotation.items()} == parts.callback.rotation.compute()
    assert parts.module.validated[-len(left) :] == sorted(left)
    assert parts.callback.course.completed == EPOCHS
    assert parts.module.pruner.samples_seen == sum(
        len(batch) for batches in whole.batches.values() for batch in batches
    )


@pytest.mark.parametrize("pruned", [True, False], ids=["shrinking", "growing"])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("saved", SAVED)
def test_a_resume_equals_the_undisturbed_training(saved, loader, pruned, checkpoints, silent):
    parts = again(pruned, loader=LOADERS[loader])
    fit(parts, ckpt_path=checkpoints(pruned, loader) / f"{saved}.ckpt")
    check_resumed(parts, saved, pruned)


@pytest.mark.parametrize(
    ("loader", "saved"),
    [
        ("plain", "the end of an epoch"),
        ("plain", "after a batch"),
        ("stateful", "after a batch"),
        ("stateful", "after the last batch, the next epoch is longer"),
    ],
)
def test_workers_prefetch_nothing_else(saved, loader, checkpoints, silent):
    parts = again(False, loader=LOADERS[loader], workers=2)
    fit(parts, ckpt_path=checkpoints(False, loader, 2) / f"{saved}.ckpt")
    check_resumed(parts, saved, False)


@pytest.mark.parametrize("saved", SAVED)
def test_a_resume_by_steps_equals_the_undisturbed_training(saved, checkpoints, silent):
    steps = sum(map(len, own(False).batches.values()))
    folder = checkpoints(False, epochs=-1, max_steps=steps)
    parts = again(False)
    fit(parts, ckpt_path=folder / f"{saved}.ckpt", epochs=-1, max_steps=steps)
    check_resumed(parts, saved, False)
