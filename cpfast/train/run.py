"""A whole run: epochs, each stored as it ends, from wherever the folder's checkpoint stands.

Stopped at any moment and started again, it ends where it would have ended, to the bit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import cpfast
from cpfast.forms import Open, Plain, Table, check, shown
from cpfast.recipes import Action
from cpfast.train import energy, extension, loop, metrics, saved
from cpfast.train.config import ENVIRONMENT, SINCE, Config
from cpfast.train.data import Data
from cpfast.train.errors import UserError, first_line
from cpfast.train.loggers import Log
from cpfast.train.loop import Progress, Training
from cpfast.train.metrics import EpochMetrics
from cpfast.train.runfolder import CHECKPOINT, METRICS, Fork, RunFolder
from cpfast.train.state import check_state

ENERGY_EVERY = 5.0  # seconds between two writes of energy.json: reading the counters is not free

# Of a Training: what has a state that a checkpoint holds.
_STATEFUL = (
    "model", "average", "optimizer", "schedule", "scaler", "rotation", "detector", "watch",
    "pruner", "probe", "stream",
)  # fmt: skip


class _Unfit(ValueError):
    """A checkpoint of another run, or of other data."""


def train(
    config: Config,
    data: Data,
    folder: RunFolder,
    *,
    progress: Progress | None = None,
    forks: Callable[[Training], Iterable[Fork | tuple[RunFolder, Config]]] | None = None,
    until: Callable[[Training], bool] | None = None,
    epochs: int | None = None,
    actions: Sequence[Action] = (),
    begin: Callable[[Training], None] | None = None,
) -> Training:
    """Train until `config.epochs` are completed, from the folder's checkpoint if it has one.

    Args:
        data: on any device; moved to `config.device`.
        folder: created, and locked by the caller; gets a line of metrics an epoch, a checkpoint
            every `config.save_every` and after the last, the energy used, and the model of the
            best and of the last epoch.
        forks: asked once an epoch is stored, as each is then, and again for that epoch where a run
            continues: the folders that do not exist yet, with their settings, into which what was
            done so far is to be copied; plain pairs will do.
        until: stop once it says so of an epoch that is stored, as each is then.
        epochs: stop once this many are completed; None for all.
        actions: beyond those of the method's recipe; a run is to be continued with the same.
        begin: called before the first epoch, and once only; it may change the weights, from which
            rotations are measured then.

    Raises:
        Diverged: a loss or a rotation is not finite. The last finite epoch stays stored.
        UserError: the checkpoint does not fit, or is missing though epochs are done.
        ValueError: `config.guard` is set, which `cpfast.train.guard.train` takes care of.
    """
    if config.guard is not None:
        raise ValueError(f"config.guard: {config.guard:g}; train by cpfast.train.guard.train")
    training = Training(config, data.to(torch.device(config.device)), actions)
    return advance(
        training, folder, progress=progress, forks=forks, until=until, epochs=epochs, begin=begin
    )


def advance(
    training: Training,
    folder: RunFolder,
    *,
    progress: Progress | None = None,
    forks: Callable[[Training], Iterable[Fork | tuple[RunFolder, Config]]] | None = None,
    until: Callable[[Training], bool] | None = None,
    epochs: int | None = None,
    begin: Callable[[Training], None] | None = None,
    log: Log | None = None,
) -> Training:
    """As `train`, of what is built already.

    Args:
        log: gets each epoch as well; closed by the caller.
    """
    config = training.config
    lines = opened(training, folder, begin=begin, log=log)
    last = config.epochs if epochs is None else min(epochs, config.epochs)
    save_every = config.save_every if forks is None and until is None else 1

    def stored() -> bool:
        """What follows an epoch once it is stored; whether to go on."""
        for fork in forks(training) if forks is not None else ():
            if training.meter is not None:
                folder.save_energy(training.meter.read())
            folder.fork(*fork)
        return until is None or not until(training)

    # A stop may have come between storing an epoch and what follows it.
    if (training.epoch > 0 and not stored()) or training.epoch >= last:
        if training.epoch == config.epochs and not (folder.path / saved.DESCRIPTION).exists():
            saved.store(training, folder, lines)  # of a run of an earlier version
        return training
    with metered(training, folder) as meter:
        train_epochs(
            training, folder, lines, last, save_every=save_every, progress=progress, log=log,
            meter=meter, stored=stored,
        )  # fmt: skip
    return training


def opened(
    training: Training,
    folder: RunFolder,
    *,
    begin: Callable[[Training], None] | None = None,
    log: Log | None = None,
) -> list[str]:
    """Take up the training where the folder's checkpoint stands: the lines of metrics so far.

    Raises:
        UserError: as `train`.
    """
    config = training.config
    checkpoint = folder.checkpoint()
    lines: list[str] = []
    if checkpoint is not None:
        lines = checkpoint.pop("metrics")
        try:
            load_state_dict(training, checkpoint)
        except ValueError as error:
            raise UserError(f"{folder.path / CHECKPOINT}: {error}") from error
    elif done := len(folder.metrics()):
        raise UserError(
            f"{folder.path / CHECKPOINT}: missing, though {done} of {config.epochs} epochs are "
            "done; put it back, or train into another folder"
        )
    else:
        if begin is not None:
            begin(training)
            training.rotation.reset()
        # So that lines never stand without one.
        folder.save_checkpoint({**state_dict(training), "metrics": lines})
    if folder.restore_metrics(lines) and training.ranks.is_first:
        print(
            f"cpfast: note: {folder.path / METRICS}: damaged, or lines are missing; it is written "
            f"again from {CHECKPOINT}, for epochs 1 to {training.epoch}",
            file=sys.stderr,
        )
    if log is not None:
        log.begin([metrics.read(json.loads(line)) for line in lines])
    return lines


@contextmanager
def metered(training: Training, folder: RunFolder) -> Iterator[energy.EnergyMeter]:
    """Around epochs: the energy that they use is stored."""
    training.meter = meter = energy.start(training.config, folder)
    try:
        yield meter
    finally:
        total = meter.stop()
        if folder.is_run():  # it may have been removed meanwhile
            folder.save_energy(total)


def train_epochs(
    training: Training,
    folder: RunFolder,
    lines: list[str],
    last: int,
    *,
    save_every: int = 1,
    progress: Progress | None = None,
    log: Log | None = None,
    meter: energy.EnergyMeter | None = None,
    complete: Callable[[EpochMetrics], EpochMetrics] | None = None,
    stored: Callable[[], bool] | None = None,
) -> None:
    """Epoch after epoch, each stored as it ends.

    Args:
        lines: of metrics so far; grows.
        last: epochs completed at which to stop.
        save_every: epochs between two checkpoints; after the last there is one.
        meter: read now and then; None: no energy is stored.
        complete: may add to an epoch's metrics before they are stored.
        stored: called once an epoch is stored; whether to go on.
    """
    energy_read, go_on = time.monotonic(), True
    while go_on and training.epoch < last:
        line = loop.train_epoch(training, progress)
        if complete is not None:
            line = complete(line)
        folder.append_metrics(line, lines)
        is_last, energy_used = training.epoch == last, None
        # Before the last checkpoint, after which a run that was stopped is not begun again.
        if meter is not None and (is_last or time.monotonic() - energy_read > ENERGY_EVERY):
            energy_used = meter.read()
            folder.save_energy(energy_used)
            energy_read = time.monotonic()
        if log is not None:
            log.epoch(line, None if energy_used is None else energy_used["kwh"])
        # Before the checkpoint, as the energy.
        saved.store(training, folder, lines)
        if is_last or training.epoch % save_every == 0:
            folder.save_checkpoint({**state_dict(training), "metrics": lines})
        if progress is not None:
            progress.epoch(line)
        if stored is not None:
            go_on = stored()


def state_dict(training: Training) -> dict[str, Any]:
    """What a checkpoint holds."""
    t = training
    return {
        "epoch": t.epoch,
        "config": t.config.to_dict(),
        "data": t.fingerprint,
        "actions": t.beyond,
        "rotations": list(t.rotations),
        "diffusion": list(t.diffusion),
        **{name: getattr(t, name).state_dict() for name in _STATEFUL},
    }


def load_state_dict(training: Training, state: dict[str, Any]) -> None:
    """Continue from `state`.

    Raises:
        ValueError: it belongs to another run, or to other data.
    """
    t = training
    try:
        check(state, Open({"config": Table(Plain), "data": str}), "checkpoint")
        if "ema" not in state["config"]:  # of before it was there
            state = {"average": {}, **state}
        state = extension.adopted(state, t.config)
        other = _differences({**SINCE, **state["config"]}, t.config.to_dict())
        if other:
            raise _Unfit(f"of another run (it differs in {', '.join(other)})")
        if state["data"] != t.fingerprint:
            raise _Unfit(
                f"of other data: the run began with {shown(state['data'])}, and {t.config.data} "
                f"is now {t.fingerprint}"
            )
        own = state_dict(t)
        if isinstance(state.get("pruner"), dict):
            state = {**state, "pruner": _with_own_reference(own["pruner"], state["pruner"])}
        check_state(t, own, state)
        if state["actions"] not in (None, t.beyond):
            raise _Unfit(f"of a run with the actions {shown(state['actions'])} beyond its recipe")
        # Without what torch notes beside the weights.
        t.model.load_state_dict(dict(state["model"]))
        for name in _STATEFUL:
            if name not in ("model", "detector", "watch", "pruner"):
                getattr(t, name).load_state_dict(state[name])
        # A fork may prune by other rules than the run that it comes from.
        t.pruner.load_state_dict(_under_rules_of(t.pruner, state["pruner"]))
        # What has been decided follows from the values: a fork may decide by other rules.
        t.watch.load(state["watch"], state["detector"])
        t.rotations = [tuple(float(r) for r in rotation) for rotation in state["rotations"]]
        t.diffusion = list(state["diffusion"])
        t.epoch = state["epoch"]
    except _Unfit:
        raise
    # whatever a part of it stumbles over: LookupError is a missing key or a short list
    except (
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise _Unfit(f"does not fit the run ({first_line(error)})") from error


def _under_rules_of(pruner: cpfast.DataPruner, state: dict[str, Any]) -> dict[str, Any]:
    """What was recorded by another policy, for this one: columns that it did not record begin anew,
    as does what it remembers."""
    own = pruner.state_dict()
    rules = {name: own[name] for name in ("policy", "options", "keep", "anneal", "state")}
    if (state["policy"], state["options"]) == (own["policy"], own["options"]):
        return {**state, **rules, "state": state["state"]}
    columns = {
        key: {name: state[key].get(name, new) for name, new in own[key].items()}
        for key in ("columns", "columns_then")
    }
    return {**state, **rules, **columns}


def _with_own_reference(own: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """What was recorded by another policy, for one that goes by a reference of its own, or none."""
    if all(state.get(name) == own[name] for name in ("policy", "options")):
        return state
    others = {name: value for name, value in state.items() if name != "reference"}
    return {**others, **({"reference": own["reference"]} if "reference" in own else {})}


def _differences(saved: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """The settings of a run in which one differs from another."""
    names = own.keys() - saved.keys() | {shown(name) for name in saved.keys() - own.keys()}
    names |= {
        name
        for name in saved.keys() & own.keys()
        # True == 1
        if isinstance(saved[name], bool) != isinstance(own[name], bool) or saved[name] != own[name]
    }
    return sorted(names - set(ENVIRONMENT))
