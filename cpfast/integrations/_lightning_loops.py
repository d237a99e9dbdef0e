"""What Lightning's loops know of their loader, and compute once: read and set here alone.

The names are those of Lightning 2.6; :func:`check_trainer` says which are gone in another version.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import BatchSampler

from cpfast.sampling import PrunedSampler
from cpfast.schedules import FractionLR

_NAMES = (
    "callbacks",
    "check_val_every_n_epoch",
    "distributed_sampler_kwargs",
    "limit_train_batches",
    "lr_scheduler_configs",
    "val_check_batch",
    "val_check_interval",
    "fit_loop._combined_loader",
    "fit_loop._data_fetcher",
    "fit_loop._data_source.instance",
    "fit_loop._restarting",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop.batch_progress.current.processed",
    "fit_loop.epoch_loop.reset_restart_stage",
    "fit_loop.epoch_loop.restarted_on_train_batch_end",
    "fit_loop.epoch_loop.restarting",
    "fit_loop.epoch_loop.val_loop.reset_restart_stage",
    "fit_loop.epoch_progress.current.processed",
    "fit_loop.is_resuming",
    "fit_loop.max_batches",
    "fit_loop.reset_restart_stage",
    "fit_loop.restarted_mid_epoch",
    "fit_loop.restarted_on_epoch_end",
)


def check_trainer(trainer: Any, version: str) -> None:
    """
    Raises:
        RuntimeError: a name that is used here is gone.
    """
    for name in _NAMES:
        try:
            operator.attrgetter(name)(trainer)
        except AttributeError as error:
            raise RuntimeError(
                f"lightning {version}: trainer.{name} is not there; cpfast was written for 2.6"
            ) from error


# --- the loader -----------------------------------------------------------------------------


def sampler_of(loader: Any) -> PrunedSampler | None:
    """That which a loader's samples come from, through samplers of batches."""
    node = loader
    while node is not None and not isinstance(node, PrunedSampler):
        inner = getattr(node, "batch_sampler", None)
        node = getattr(node, "sampler", None) if inner is None else inner
    return node


def pruned_sampler(trainer: Any) -> PrunedSampler | None:
    """That of the training's loader.

    Raises:
        RuntimeError: there are several.
    """
    combined = trainer.fit_loop._combined_loader
    loaders = [] if combined is None else combined.flattened
    found = {id(s): s for s in map(sampler_of, loaders) if s is not None}
    if len(found) > 1:
        raise RuntimeError(
            f"train_dataloader: {len(found)} PrunedSamplers, and a training plans by one"
        )
    return next(iter(found.values()), None)


def given_sampler(trainer: Any) -> PrunedSampler | None:
    """That of the loader that was given to fit(); of one that the module makes it is not known
    yet."""
    return sampler_of(trainer.fit_loop._data_source.instance)


def share_out(trainer: Any, sampler: PrunedSampler) -> None:
    """Has each process take an equal share, since one step more on one of them hangs the others.

    Raises:
        RuntimeError: the sampler was told other shares than the trainer's processes have.
    """
    theirs = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    replicas, rank = theirs["num_replicas"], theirs["rank"]
    if (sampler.num_replicas, sampler.rank) != (replicas, rank):
        raise RuntimeError(
            f"PrunedSampler: takes share {sampler.rank} of {sampler.num_replicas}, and this process"
            f" of the trainer is {rank} of {replicas}: make it without num_replicas, rank and "
            "shard, or with these"
        )
    if replicas > 1:
        sampler.drop_last = True


def fit_lengths(trainer: Any, sampler: PrunedSampler) -> None:
    """Computes anew what follows from the number of batches in the epoch that is chosen.

    Raises:
        RuntimeError: there are none, upon which Lightning would end the training.
    """
    fit_loop, combined = trainer.fit_loop, trainer.fit_loop._combined_loader
    limits = list(combined.limits)
    for number, loader in enumerate(combined.flattened):
        if sampler_of(loader) is sampler:
            limits[number] = _limited(len(loader), trainer.limit_train_batches)
    combined.limits = limits
    combined._iterator.limits = limits
    try:
        batches: float = len(combined)
    except TypeError:  # of loaders without a length it is infinite
        batches = math.inf
    if batches == 0:
        raise RuntimeError(
            f"train_dataloader: {len(sampler)} samples are planned for epoch {sampler.epoch}, which"
            " make no batch: drop_last or limit_train_batches leaves none"
        )
    fit_loop.max_batches = batches
    _fit_validation(trainer, batches)


def _limited(batches: int, limit: float) -> int:
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _fit_validation(trainer: Any, batches: float) -> None:
    """After which batches is validated; of an epoch that has become shorter than an interval, after
    its last."""
    interval = trainer.val_check_interval
    if trainer.val_check_batch is None or batches == math.inf:  # by time, or at the end
        return
    if isinstance(interval, int):
        if trainer.check_val_every_n_epoch is not None:
            trainer.val_check_batch = min(interval, batches)
    elif isinstance(interval, float):
        trainer.val_check_batch = max(1, int(batches * interval))


def iterate_anew(trainer: Any, sampler: PrunedSampler) -> None:
    """Where Lightning goes on with an iterator that it made before the epoch was chosen."""
    fit_loop = trainer.fit_loop
    if trainer.current_epoch == 0 or fit_loop.is_resuming or fit_loop.epoch_loop.restarting:
        _move_to(sampler, 0)  # workers may have asked for all of it
        iter(fit_loop._data_fetcher)


def _move_to(sampler: PrunedSampler, position: int) -> None:
    sampler.load_state_dict({"epoch": sampler.epoch, "position": position, "finished": False})


# --- a resume -------------------------------------------------------------------------------


def resume_cleanly(trainer: Any) -> None:
    """Has an epoch of which all batches were trained be over.

    Of a checkpoint of its last batch, Lightning begins the next epoch without saying so, and takes
    the batches that were trained for some of it where it is longer; with max_steps, of one of its
    end, Lightning trains a batch more or ends it twice.
    """
    fit_loop = trainer.fit_loop
    epoch_loop, progress = fit_loop.epoch_loop, fit_loop.epoch_progress
    if fit_loop.restarted_on_epoch_end:
        progress.increment_completed()
    elif fit_loop.restarted_mid_epoch and progress.total.processed == progress.total.started:
        # of the last batch; what epoch_loop.reset() would do
        epoch_loop.batch_progress.increment_completed()
        epoch_loop._batches_that_stepped += 1
    else:
        return
    for loop in (fit_loop, epoch_loop, epoch_loop.val_loop):
        loop.reset_restart_stage()
    epoch_loop.restarting = False
    fit_loop._restarting = False


def go_on(trainer: Any, sampler: PrunedSampler | None, states: list[Any]) -> None:
    """Has the loader begin after the batches that were trained.

    Args:
        sampler: None: of loaders that have a state alone.
        states: of these, as they were saved.

    Raises:
        RuntimeError: how many samples the batches had is not known.
    """
    fit_loop = trainer.fit_loop
    combined, done = fit_loop._combined_loader, fit_loop.epoch_loop.batch_progress.current.processed
    if done >= fit_loop.max_batches:  # but for what comes at the epoch's end
        return
    if sampler is not None:
        for loader in combined.flattened:
            if sampler_of(loader) is sampler and not (states and hasattr(loader, "state_dict")):
                _move_to(sampler, done * _batch_size(loader))
    if states:
        combined._load_state_dicts(states)
    if states or sampler is not None:
        iter(fit_loop._data_fetcher)


def _batch_size(loader: Any) -> int:
    batches = getattr(loader, "batch_sampler", None)
    if batches is None:
        return 1
    if type(batches).__iter__ is not BatchSampler.__iter__:
        raise RuntimeError(
            "ckpt_path: of the middle of an epoch, and how many samples the batches of "
            f"{type(batches).__name__} had is not known: give the sampler to the loader as "
            "sampler=, use torchdata's StatefulDataLoader, or resume from an epoch's end"
        )
    return batches.batch_size


# --- schedules ------------------------------------------------------------------------------


def uncounted(trainer: Any) -> list[str]:
    """The schedulers that count steps, whose number is not known, and are not placed here."""
    return [
        type(config.scheduler).__name__
        for config in trainer.lr_scheduler_configs
        if config.interval == "step"
        and not config.reduce_on_plateau
        and not isinstance(config.scheduler, FractionLR)
        and not _is_placed(config)
    ]


def _is_placed(config: Any) -> bool:
    # by its place alone it knows its rates
    is_cycle = isinstance(config.scheduler, OneCycleLR)
    return is_cycle and config.interval == "step" and config.frequency == 1


def place_schedules(trainer: Any, fraction: float, *, counts: bool) -> None:
    """Before a scheduler's step: where it is to stand after it.

    Args:
        fraction: of training done.
        counts: whether those that count steps are right in it.
    """
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if isinstance(scheduler, FractionLR):
            scheduler.fraction = fraction
        elif not counts and _is_placed(config):
            scheduler.last_epoch = fraction * scheduler.total_steps - 1  # the step adds one


def fraction_done(trainer: Any, epochs: int | None, batch: int) -> float:
    """Of the training, after batch ``batch`` (from 0) of the epoch.

    Args:
        epochs: of the training, where the trainer does not say.
    """
    fraction = 0.0
    if trainer.max_epochs not in (None, -1):
        epochs = trainer.max_epochs
    if epochs is not None:
        micro, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
        done = math.ceil((batch + 1) / micro)
        share = 0.0 if batches == math.inf else done / math.ceil(batches / micro)
        fraction = (trainer.fit_loop.epoch_progress.current.processed + share) / epochs
    if trainer.max_steps != -1:
        fraction = max(fraction, (trainer.global_step + 1) / trainer.max_steps)
    return min(fraction, 1.0)
