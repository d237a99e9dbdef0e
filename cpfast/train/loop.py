"""The training loop: one epoch after another, each with what the recipe still spends on it.

    stream of indices -> gather, augment -> model -> scored loss -> backward -> optimizer

`Training.step` is that line: it reads and writes tensors on the device and never waits for them,
so that it can be compiled, or captured once as a CUDA graph and replayed; what is pruned only
changes how many steps an epoch has. At an epoch's end the host reads one small tensor: the loss
and the layers' rotation, from which the detector and the next epoch's recipe follow. All
randomness comes from the seed, the epoch and what it is drawn for, so a resumed run equals an
uninterrupted one to the bit; on CUDA but for attention and pooling whose windows overlap (above 64
pixels, in the stem of ResNet-18/34/50), whose backward adds in any order, and for compiled steps,
whose kernels are chosen by their time.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

import cpfast
from cpfast.train import batches, models, optimizers, process
from cpfast.train.batches import AUTOCAST
from cpfast.train.clock import Clock
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.energy import EnergyMeter
from cpfast.train.errors import Diverged, UserError
from cpfast.train.step import Step
from cpfast.train.stream import SampleStream

EVALUATION_BATCH = 512
PRUNING_ANNEAL = 0.875


class Progress(Protocol):
    """What the loop tells a progress bar."""

    def step(self, epochs: float) -> None: ...
    def epoch(self, metrics: dict[str, Any]) -> None: ...


class Training:
    """All that a run carries from one epoch to the next.

    Args:
        config: settings; `config.device` must exist.
        data: on that device.

    Attributes:
        epoch: number of epochs completed.
        meter: of its energy, where one runs.
    """

    def __init__(self, config: Config, data: ImageData | TextData) -> None:
        check(config, data)
        self.config = config
        self.device = torch.device(config.device)
        if self.device.type == "cuda":
            process.repeat_to_the_bit()
        self.epoch = 0
        self.meter: EnergyMeter | None = None
        self.fingerprint = data.fingerprint()  # once: it reads all of the data
        if config.labels == "random":
            data = data.with_random_labels(config.seed)
        self.data = data
        self.batches = batches.of(config, data)
        model = models.build(config.model, data.shape, data.outputs, config.seed)
        # torch's annotations leave this form out
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = model.to(self.device)
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
            data.train_size,
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
        self.stream = SampleStream(config.repeats * data.train_size, config.batch_size, self.device)
        self.clock = Clock(self.device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        compiled, self.captured = "compile" in config.step, "graph" in config.step
        if self.captured and not optimizers.can_capture(
            self.optimizer, scaled=self.scaler.is_enabled()
        ):
            raise UserError(
                f"--step {config.step}: torch {torch.__version__} cannot capture --optimizer "
                f"{config.optimizer} with --precision {config.precision} in a CUDA graph; "
                "use --step eager or compile"
            )
        # Each batch size is compiled for itself: kernels for any size would be others.
        self.forward = (
            torch.compile(self.model, dynamic=False, fullgraph=True) if compiled else self.model
        )
        # Held as it is, the method would keep this object, and its memory on the device, alive.
        step = weakref.WeakMethod(self.step)
        self.run_step = Step(
            lambda: step()(),  # type: ignore[misc]
            self.device,
            graph=self.captured,
            compiled=compiled,
        )

    def step(self) -> None:
        """One batch, forward and backward, and the update of the weights."""
        index, draw, weight = self.stream.next()
        inputs, targets = self.batches.train(index, draw)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self.forward(inputs)
        # The parts of a replayed graph cannot be timed.
        with nullcontext() if self.captured else self.clock.part("scoring"):
            loss = self.pruner.loss(logits, targets, index, weight=weight)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss_sum += loss.detach()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around what compiles and captures: neither time nor energy of the training."""
        metered = nullcontext() if self.meter is None else self.meter.paused()
        with metered, self.clock.apart("preparation"):
            yield

    def autocast(self) -> torch.autocast:
        precision = self.config.precision
        return torch.autocast(
            self.device.type, dtype=AUTOCAST[precision], enabled=precision != "fp32"
        )


def check(config: Config, data: ImageData | TextData) -> None:
    """Whether these settings and these data go together, before anything is written.

    Raises:
        UserError: they do not.
    """
    if config.batch_size > data.train_size:
        raise UserError(
            f"--batch-size {config.batch_size}: there are only {data.train_size} samples to train "
            "on"
        )


def train_epoch(training: Training, progress: Progress | None = None) -> dict[str, Any]:
    """One epoch and what it reports: a line of metrics.jsonl.

    Times are in seconds: "train" is synchronised wall time, and "detection", "scoring" and
    "selection" are parts of it. Scoring is the whole call of the scored loss, the loss itself
    included: an upper bound; None where the step is a CUDA graph. "evaluation" is not part of
    "train", nor is "preparation": the first few steps of a process, which compile and capture.
    """
    t, config = training, training.config
    phase = t.recipe.phase(t.epoch, t.detector.end_epoch)
    with t.clock.whole("train"):
        with t.clock.part("selection"):
            planned, steps = _plan(t, phase)
        t.model.train()
        t.loss_sum.zero_()
        for step in range(steps):
            t.schedule.step((t.epoch + step / steps) / config.epochs)
            with nullcontext() if t.run_step.ready else t.preparing():
                t.run_step()
            if progress is not None:
                progress.step(1 / steps)
        # Of a batch's mean and its size, over the weights, which stand for the samples left out
        # too: it estimates the mean over all.
        summary = [config.batch_size * t.loss_sum / t.stream.weight_sum()]
        if config.detect:
            with t.clock.part("detection"):
                summary += t.rotation.update().double().unbind()
        train_loss, *rotation = torch.stack(summary).tolist()
        mean_rotation = None
        if steps:
            _check_finite("training loss", train_loss, t.epoch + 1)
        if rotation and steps:  # what has not moved says nothing
            mean_rotation = math.fsum(rotation) / len(rotation)
            _check_finite("layer rotation", mean_rotation, t.epoch + 1)
            with t.clock.part("detection"):
                t.detector.step(mean_rotation, t.epoch + 1)
    t.epoch += 1
    test_loss = test_accuracy = None
    if t.epoch % config.eval_every == 0 or t.epoch == config.epochs:
        with t.clock.whole("evaluation"):
            test_loss, test_accuracy = evaluate(t, progress)
        # What the last step spoilt shows in no later loss.
        _check_finite("test loss", test_loss, t.epoch)
    return {
        "epoch": t.epoch,
        "train_loss": train_loss if steps else None,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "rotation_mean": mean_rotation,
        "rotation": dict(zip(t.rotation.names, rotation, strict=False)),
        **_period(t),
        "repeats": phase.repeats,
        "prune": phase.prune,
        "planned_samples": planned,
        "forward_samples": steps * config.batch_size,
        "backward_samples": steps * config.batch_size,
        "full_samples": _full_samples(t, t.epoch) - _full_samples(t, t.epoch - 1),
        "lr": float(t.optimizer.param_groups[0]["lr"]),
        "seconds": _seconds(t),
    }


def _period(t: Training) -> dict[str, Any]:
    slopes = t.detector.slopes
    return {
        "slope": slopes[-1][1] if slopes and slopes[-1][0] == t.epoch else None,
        "period_end": t.detector.end_epoch,
        "period_end_reason": t.detector.reason,
    }


def _seconds(t: Training) -> dict[str, float | None]:
    scoring = None if t.captured else 0.0
    parts = {"evaluation": 0.0, "preparation": 0.0, "detection": 0.0, "scoring": scoring}
    return {**parts, **t.clock.read()}


def _full_samples(t: Training, epochs: int) -> int:
    """What k repeats throughout take in so many epochs: whole batches, the rest carried over."""
    batch = t.config.batch_size
    return t.config.repeats * t.data.train_size * epochs // batch * batch


def _plan(t: Training, phase: cpfast.recipes.Phase) -> tuple[int, int]:
    """Put the epoch's samples into the stream: how many these are, and how many steps they make."""
    order = t.pruner.plan(t.epoch, repeats=phase.repeats, prune=phase.prune)
    # All passes choose by the same scores, and are of one length.
    passes = torch.arange(phase.repeats, device=t.device) + t.epoch * t.config.repeats
    draw = passes.repeat_interleave(len(order) // phase.repeats)
    return len(order), t.stream.extend(order, draw, t.pruner.weights(order))


def evaluate(training: Training, progress: Progress | None = None) -> tuple[float, float]:
    """Mean cross-entropy and share of the test samples classified correctly, un-augmented.

    Of text, of its characters.
    """
    t = training
    t.model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=t.device)
    correct = torch.zeros((), dtype=torch.int64, device=t.device)
    count = 0
    with torch.inference_mode():
        for index in torch.arange(t.data.test_size, device=t.device).split(EVALUATION_BATCH):
            inputs, targets = t.batches.test(index)
            with t.autocast():
                logits = t.model(inputs)
            logits, targets = logits.float().flatten(0, -2), targets.flatten()
            loss += F.cross_entropy(logits, targets, reduction="sum")
            correct += (logits.argmax(1) == targets).sum()
            count += len(targets)
            if progress is not None:
                progress.step(0.0)  # where Ctrl-C is noticed
    return loss.item() / count, correct.item() / count


def _anneal(config: Config) -> tuple[float, float | None]:
    """The `anneal` of the pruner and that of the recipe: one of them decides, not both."""
    if config.anneal is None:
        return PRUNING_ANNEAL, None
    return (1.0, config.anneal) if "detector" in config.method else (config.anneal, None)


def _check_finite(what: str, value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"training diverged: the {what} of epoch {epoch} is {value}; "
            "try a lower --lr (the epochs before are kept)"
        )
