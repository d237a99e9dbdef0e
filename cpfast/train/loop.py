"""The training loop: one epoch after another, each with what the recipe still spends on it.

    samples on the device -> gather, augment, subtract mean -> model -> loss -> backward -> step

At an epoch's end the detector reads the rotation, and the next epoch's recipe follows from it.
All randomness comes from (seed, epoch) and what it is drawn for, so a resumed run equals an
uninterrupted one to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cpfast
from cpfast.train import energy, models, optimizers
from cpfast.train.clock import Clock
from cpfast.train.config import ENVIRONMENT, Config
from cpfast.train.data import ImageData
from cpfast.train.errors import Diverged, UserError
from cpfast.train.runfolder import CHECKPOINT, RunFolder

EVALUATION_BATCH = 512
ENERGY_EVERY = 5.0  # seconds between two writes of energy.json: reading the counters is not free
PRUNING_ANNEAL = 0.875
# The paper's augmentation (2506.15954).
ROTATION = 15.0  # degrees
SHIFT = 0.1  # of the height and of the width
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Progress(Protocol):
    """What the loop tells a progress bar."""

    def step(self, epochs: float) -> None: ...
    def epoch(self, metrics: dict[str, Any]) -> None: ...


class _Unfit(ValueError):
    """A checkpoint of another run, or of other data."""


class Training:
    """All that a run carries from one epoch to the next.

    Args:
        config: settings; `config.device` must exist.
        data: on that device.

    Attributes:
        epoch: number of epochs completed.
    """

    def __init__(self, config: Config, data: ImageData) -> None:
        self.config = config
        self.data = data
        self.device = torch.device(config.device)
        self.epoch = 0
        self.fingerprint = data.fingerprint()  # once: it reads all of the data
        model = models.build(config.model, data.shape, data.outputs, config.seed)
        # torch's annotations leave this form out
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = model.to(self.device)
        self.mean = data.mean()
        self.optimizer = optimizers.build(config, self.model)
        self.schedule = cpfast.schedules.FractionSchedule(
            self.optimizer, getattr(cpfast.schedules, config.schedule)()
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")
        self.rotation = cpfast.LayerRotation(self.model, include=cpfast.is_weight)
        self.detector = cpfast.CriticalPeriodDetector(
            criterion=config.criterion, total_epochs=config.epochs, at=config.at
        )
        pruning_anneal, recipe_anneal = _anneal(config)
        self.pruner = cpfast.DataPruner(
            len(data.train_labels),
            num_epochs=config.epochs,
            policy=config.policy,
            keep=config.keep,
            anneal=pruning_anneal,
            seed=config.seed,
            device=self.device,
        )
        self.recipe = cpfast.Recipe.from_method(
            config.method,
            config.epochs,
            repeats=config.repeats,
            keep=config.keep,
            anneal=recipe_anneal,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "config": self.config.to_dict(),
            "data": self.fingerprint,
            **{name: getattr(self, name).state_dict() for name in self._stateful()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: it belongs to another run, or to other data.
        """
        try:
            other = _settings(state["config"]) ^ _settings(self.config.to_dict())
            if other:
                names = ", ".join(sorted({name for name, _ in other}))
                raise _Unfit(f"of another run (it differs in {names})")
            if state["data"] != self.fingerprint:
                raise _Unfit(
                    f"of other data: the run began with {state['data']}, and {self.config.data} "
                    f"is now {self.fingerprint}"
                )
            for name in self._stateful():
                if name != "detector":
                    getattr(self, name).load_state_dict(state[name])
            # What has been decided follows from the values: a fork may decide by other rules.
            for epoch, value in state["detector"]["history"]:
                self.detector.step(value, epoch)
            self.epoch = state["epoch"]
        except _Unfit:
            raise
        # whatever a part of it stumbles over: LookupError is a missing key or a short list
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise _Unfit(f"does not fit the run ({error!r})") from error

    def _stateful(self) -> tuple[str, ...]:
        return ("model", "optimizer", "schedule", "scaler", "rotation", "detector", "pruner")


def run(
    config: Config,
    data: ImageData,
    folder: RunFolder,
    *,
    progress: Progress | None = None,
    forks: Callable[[Training], Iterable[tuple[RunFolder, Config]]] | None = None,
    until: Callable[[Training], bool] | None = None,
    epochs: int | None = None,
) -> Training:
    """Train until `config.epochs` are completed, from the folder's checkpoint if it has one.

    Args:
        data: on any device; moved to `config.device`.
        folder: created, and locked by the caller; gets a line of metrics and a checkpoint an
            epoch, and the energy used.
        forks: asked once an epoch is stored, and again for that epoch where a run continues: the
            folders that do not exist yet, with their settings, into which what was done so far is
            to be copied.
        until: stop once it says so of an epoch that is stored.
        epochs: stop once this many are completed; None for all.

    Raises:
        Diverged: a loss or a rotation is not finite. The last finite epoch stays stored.
        UserError: the checkpoint does not fit, or is missing after the first epochs.
    """
    training = Training(config, data.to(torch.device(config.device)))
    checkpoint = folder.checkpoint()
    if checkpoint is not None:
        try:
            training.load_state_dict(checkpoint)
        except ValueError as error:
            raise UserError(f"{folder.path / CHECKPOINT}: {error}") from error
    elif (done := len(folder.metrics())) > 1 or done == config.epochs:
        # A stop before the first checkpoint leaves one line at most.
        raise UserError(
            f"{folder.path / CHECKPOINT}: missing, though {done} of {config.epochs} epochs are "
            "done; put it back, or train into another folder"
        )
    folder.cut_metrics(training.epoch)
    last = config.epochs if epochs is None else min(epochs, config.epochs)
    if training.epoch >= last:
        return training
    if forks is not None and training.epoch > 0:
        # The stop may have come between storing that epoch and its forks.
        for into, settings in forks(training):
            folder.fork(into, settings)
    if until is not None and training.epoch > 0 and until(training):
        return training
    meter = energy.start(config, folder)
    try:
        energy_read = time.monotonic()
        while training.epoch < last:
            metrics = train_epoch(training, progress)
            folder.append_metrics(metrics)
            folder.save_checkpoint(training.state_dict())
            if time.monotonic() - energy_read > ENERGY_EVERY:
                folder.save_energy(meter.read())
                energy_read = time.monotonic()
            if progress is not None:
                progress.epoch(metrics)
            for into, settings in forks(training) if forks is not None else ():
                folder.save_energy(meter.read())
                folder.fork(into, settings)
            if until is not None and until(training):
                break
    finally:
        folder.save_energy(meter.stop())
    return training


def train_epoch(training: Training, progress: Progress | None = None) -> dict[str, Any]:
    """One epoch and what it reports: a line of metrics.jsonl.

    Times are in seconds: "train" is synchronised wall time, and "detection", "scoring" and
    "selection" are parts of it. Scoring is the whole call of the scored loss, the loss itself
    included: an upper bound. "evaluation" is not part of "train".
    """
    t, config = training, training.config
    phase = t.recipe.phase(t.epoch, t.detector.end_epoch)
    clock = Clock(t.device)
    with clock.whole("train"):
        with clock.part("selection"):
            order = t.pruner.plan(t.epoch, repeats=phase.repeats, prune=phase.prune)
        count = len(order)
        # All passes choose by the same scores, and are of one length.
        repeats = torch.arange(phase.repeats, device=t.device).repeat_interleave(
            count // phase.repeats
        )
        # Batches of equal size, at most one sample apart: no sample is left out, and none makes
        # a batch of its own.
        steps = math.ceil(count / config.batch_size)
        batches = zip(order.tensor_split(steps), repeats.tensor_split(steps), strict=True)
        t.model.train()
        loss_sum = torch.zeros((), device=t.device)
        for step, (index, repeat) in enumerate(batches):
            t.schedule.step((t.epoch + step / steps) / config.epochs)
            images = cpfast.ops.augment_batch(
                t.data.train_images,
                index,
                seed=config.seed,
                epoch=t.epoch,
                repeat=repeat,
                flip=config.flip,
                shift=SHIFT,
                rotation=ROTATION,
                mean=t.mean,
                dtype=AUTOCAST[config.precision],
            )
            with _autocast(t):
                logits = t.model(images)
            loss = _loss(t, logits.float(), t.data.train_labels[index], index, clock)
            t.scaler.scale(loss).backward()
            t.scaler.step(t.optimizer)
            t.scaler.update()
            t.optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.detach() * len(index)
            if progress is not None:
                progress.step(1 / steps)
        rotation: dict[str, float] = {}
        if config.detect:
            with clock.part("detection"):
                t.rotation.update()
                rotation = t.rotation.compute()
                mean_rotation = math.fsum(rotation.values()) / len(rotation)
        # By the weights, which stand for the samples left out: it estimates the mean over all.
        weight_sum = t.pruner.weights(order).sum(dtype=torch.float64)
        train_loss = (loss_sum.double() / weight_sum).item()
        _check_finite("training loss", train_loss, t.epoch + 1)
        if config.detect:
            _check_finite("layer rotation", mean_rotation, t.epoch + 1)
            with clock.part("detection"):
                t.detector.step(mean_rotation, t.epoch + 1)
    t.epoch += 1
    accuracy = None
    if t.epoch % config.eval_every == 0 or t.epoch == config.epochs:
        with clock.whole("evaluation"):
            accuracy = evaluate(t)
    slopes = t.detector.slopes
    return {
        "epoch": t.epoch,
        "train_loss": train_loss,
        "test_accuracy": accuracy,
        "rotation_mean": mean_rotation if config.detect else None,
        "rotation": rotation,
        "slope": slopes[-1][1] if slopes and slopes[-1][0] == t.epoch else None,
        "period_end": t.detector.end_epoch,
        "period_end_reason": t.detector.reason,
        "repeats": phase.repeats,
        "prune": phase.prune,
        "samples": count,
        "full_samples": config.repeats * len(t.data.train_labels),
        "lr": float(t.optimizer.param_groups[0]["lr"]),
        "seconds": {
            "evaluation": 0.0, "detection": 0.0, "scoring": 0.0, "selection": 0.0, **clock.read()
        },
    }  # fmt: skip


def evaluate(training: Training) -> float:
    """Share of the test images that are classified correctly, un-augmented."""
    t = training
    t.model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=t.device)
    with torch.inference_mode():
        samples = torch.arange(len(t.data.test_labels), device=t.device)
        for index, labels in zip(
            samples.split(EVALUATION_BATCH),
            t.data.test_labels.split(EVALUATION_BATCH),
            strict=True,
        ):
            images = cpfast.ops.augment_batch(
                t.data.test_images,
                index,
                seed=0,
                epoch=0,
                mean=t.mean,
                dtype=AUTOCAST[t.config.precision],
            )
            with _autocast(t):
                logits = t.model(images)
            correct += (logits.argmax(1) == labels).sum()
    return correct.item() / len(t.data.test_labels)


def _loss(t: Training, logits: Tensor, labels: Tensor, index: Tensor, clock: Clock) -> Tensor:
    if not t.config.prunes:
        # An arm that never prunes must not pay for scores.
        return F.cross_entropy(logits, labels)
    with clock.part("scoring"):
        return t.pruner.loss(logits, labels, index)


def _autocast(t: Training) -> torch.autocast:
    precision = t.config.precision
    return torch.autocast(t.device.type, dtype=AUTOCAST[precision], enabled=precision != "fp32")


def _anneal(config: Config) -> tuple[float, float | None]:
    """The `anneal` of the pruner and that of the recipe: one of them decides, not both."""
    if config.anneal is None:
        return PRUNING_ANNEAL, None
    return (1.0, config.anneal) if "detector" in config.method else (config.anneal, None)


def _settings(config: dict[str, Any]) -> set[tuple[str, Any]]:
    return {(name, value) for name, value in config.items() if name not in ENVIRONMENT}


def _check_finite(what: str, value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"training diverged: the {what} of epoch {epoch} is {value}; "
            "try a lower --lr (the epochs before are kept)"
        )
