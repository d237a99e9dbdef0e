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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cpfast
from cpfast.detection.probe import ModelProbe
from cpfast.moment import Moment
from cpfast.pruning import BatchFilter, Draw, LazyPlan
from cpfast.recipes import Action, EpochSettings, Recipe, StepShape
from cpfast.recipes.freeze import diffusion
from cpfast.train import (
    average,
    balance,
    batches,
    chance,
    checks,
    extension,
    flops,
    last_layer,
    models,
    optimizers,
    process,
    references,
    weights,
)
from cpfast.train.batches import AUTOCAST, FULL, AnyBatches, TextBatches
from cpfast.train.clock import Clock
from cpfast.train.config import Config
from cpfast.train.data import Data, TextData
from cpfast.train.energy import EnergyMeter
from cpfast.train.errors import Diverged, UserError
from cpfast.train.metrics import EpochMetrics, Seconds
from cpfast.train.models.head import WithHead
from cpfast.train.ranks import Ranks
from cpfast.train.step import Step
from cpfast.train.stream import SampleStream
from cpfast.train.watch import Watch, statistic_of

EVALUATION_BATCH = 512
LARGE = 64 * 64  # pixels; of larger images fewer are evaluated at a time, since activations grow
_FILTER_STREAM = 1  # of the draws within batches; those of the passes have others


class Progress(Protocol):
    """What the loop tells a progress bar."""

    def step(self, epochs: float) -> None: ...
    def epoch(self, metrics: EpochMetrics) -> None: ...


class Training:
    """All that a run carries from one epoch to the next.

    Args:
        config: settings; `config.device` must exist.
        data: on that device.
        actions: beyond those of the method's recipe.
        fingerprint: of the data that these are a part of, if they are; None: of these.

    Attributes:
        epoch: number of epochs completed.
        spends: whether it goes on as if the critical period had not ended, which is detected and
            reported all the same.
        beyond: what `actions` are, in words.
        meter: of its energy, where one runs.
        loaded: what of --weights it begins with, in words.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        actions: Sequence[Action] = (),
        *,
        fingerprint: str | None = None,
    ) -> None:
        self.ranks = Ranks()
        checks.check(config, data, self.ranks)
        self.config = config
        self.device = torch.device(config.device)
        if self.device.type == "cuda":
            process.repeat_to_the_bit()
        self.epoch = 0
        self.spends = False
        self.meter: EnergyMeter | None = None
        # once: it reads all of the data
        self.fingerprint = data.fingerprint() if fingerprint is None else fingerprint
        if config.labels == "random":
            data = data.with_random_labels(config.seed)
        self.data = data
        self.reference = None
        if config.reference is not None and isinstance(data, TextData):
            self.reference = references.load(config.reference, data).to(self.device)
        self.chance = chance.of(data)
        self.batches = batches.of(config, data)
        model = models.build(config.model, data.shape, data.outputs, config.seed)
        models.set_bn_momentum(model, config.bn_momentum)
        self.loaded = None
        if config.weights is not None and Path(config.weights).is_file():  # a resume needs none
            self.loaded = weights.load(model, config.weights)
        # torch's annotations leave this form out
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = model.to(self.device)
        some = torch.arange(min(2, data.train_size), device=self.device)
        models.try_out(config.model, self.model, *self.batches.plain(some), data.outputs)
        self.flops = flops.FlopCounter(self.model, self.batches.shapes)
        self.class_weights = balance.weights(data) if config.class_weight == "balanced" else None
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(self.device)
        self.optimizer = optimizers.build(config, self.model)
        self.average = average.of(config.ema, self.model)
        self.schedule = cpfast.schedules.FractionSchedule(
            self.optimizer, optimizers.schedule(config)
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")
        self.rotation = cpfast.LayerRotation(self.model)
        self.watch = Watch(config, self.model)
        self.detector = self.watch.driving
        self.rotations: list[tuple[float, ...]] = []  # after each epoch
        self.diffusion: list[float] = []  # of each epoch, see Moment
        # The recipe says when nothing is left out; a remainder is carried into the next epoch, so
        # that what an epoch delivers is not what it planned.
        self.pruner = pruner = cpfast.DataPruner(
            data.train_size,
            num_epochs=config.epochs,
            policy=config.policy,
            keep=config.keep,
            anneal=1.0,
            seed=config.seed,
            device=self.device,
            strict=None,
            labels=None if isinstance(data, TextData) else data.train_labels,
            reference=self.reference,
        )
        self.recipe = Recipe(config.epochs, [*config.recipe().actions, *actions])
        self.beyond = [f"{type(action).__name__} {vars(action)}" for action in actions]
        fixed = batches.fixed(config, data, self.batches, self.model)
        self.probe = ModelProbe(
            self.rotation,
            losses=lambda: pruner.scores,
            optimizer=self.optimizer,
            needs=self.watch.needs,
            batches=fixed if "batches" in self.watch.needs else None,
            seed=config.seed,
            scaled=self.scaler.is_enabled(),
        )
        possible = self.recipe.possible()
        self.warp = config.warped()
        self.passes = max(settings.repeats for settings in possible)
        most = max(settings.batch for settings in possible)
        most *= config.accumulate
        capacity = self.passes * data.train_size
        self.stream = SampleStream(
            capacity, config.batch_size, self.device, most, self.ranks.rank, self.ranks.size
        )
        self.mixer = cpfast.Mixer(config.seed, capacity // config.batch_size + most, self.device)
        checks.check_sizes(self, {settings.shape for settings in possible})
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
        self.forward = _compiled(self.model) if compiled else self.model
        self.hidden = None
        if last_layer.together(config, data, self.model, self.watch.needs):
            assert isinstance(self.model, WithHead)
            self.hidden = _compiled(self.model.hidden) if compiled else self.model.hidden
        self._steps: dict[Any, Step] = {}

    def step_of(self, settings: EpochSettings, batch_filter: BatchFilter | None) -> Step:
        """The step of an epoch: one for each shape of it, which is compiled and captured once."""
        size = settings.batch * self.config.batch_size // self.ranks.size
        kept = None if batch_filter is None else batch_filter.kept(size)
        key = (settings.shape, kept, self.pruner.token_filter)
        if key not in self._steps:
            # Held as it is, the method would keep this object, and its memory, alive.
            step = weakref.WeakMethod(self.step)
            self._steps[key] = Step(
                lambda: step()(settings.shape, batch_filter),  # type: ignore[misc]
                self.device,
                graph=self.captured,
                compiled="compile" in self.config.step,
            )
        return self._steps[key]

    def step(self, shape: StepShape = FULL, batch_filter: BatchFilter | None = None) -> None:
        """Some batches forward and backward, and one update of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.config.accumulate):
            self._add_gradients(shape, batch_filter)
        self.ranks.average_gradients(self.model.parameters())
        optimizers.clip_gradients(self.config, self.optimizer, self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.step()
        self.probe.after_step()

    def _add_gradients(self, shape: StepShape, batch_filter: BatchFilter | None) -> None:
        """One batch, forward and backward."""
        index, draw, weight = self.stream.next(shape.batch)
        inputs, targets = self.batches.train(index, draw, shape)
        if batch_filter is not None:
            with nullcontext() if self.captured else self.clock.part("forwards"):
                chosen = self._choose(batch_filter, inputs, targets, index, draw)
            index, weight = index[chosen], weight[chosen]
            inputs, targets = inputs[chosen], targets[chosen]
        if self.class_weights is not None:
            weight = weight * self.class_weights[targets]
        inputs, share = self.mixer.mix(shape.mixing, inputs)
        with self.autocast():
            outputs = self.forward(inputs) if self.hidden is None else self.hidden(inputs)
        if self.hidden is None:
            self.probe.after_forward(outputs, targets)
        # The parts of a replayed graph cannot be timed.
        with nullcontext() if self.captured else self.clock.part("scoring"):
            reference = self._reference_of(index, draw, shape)
            loss = self._loss(outputs, targets, index, share, weight, reference)
        # Batches are of one size, so the mean over all of them is the mean of their means.
        self.scaler.scale(loss / self.config.accumulate).backward()
        if self.pruner.token_filter is not None:  # the loss of the epoch counts all tokens
            self.loss_sum += self.pruner.columns["loss"][index].mean()
        elif batch_filter is None:
            self.loss_sum += loss.detach()

    def _reference_of(self, index: Tensor, draw: Tensor, shape: StepShape) -> Tensor | None:
        """The reference's losses of shortened sequences; those of whole ones the pruner has."""
        if self.reference is None or shape.length == 1:
            return None
        assert isinstance(self.batches, TextBatches)
        return self.batches.beside(self.reference[index], index, draw, shape)

    def _loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        index: Tensor,
        share: Tensor | None,
        weight: Tensor,
        reference: Tensor | None,
    ) -> Tensor:
        """
        Args:
            outputs: logits; where the last layer belongs to the loss, what that takes.
        """
        smoothing = self.config.label_smoothing
        options: dict[str, Any] = {} if reference is None else {"reference": reference}
        if not isinstance(self.model, WithHead) or self.hidden is None:
            return self.mixer.loss(
                self.pruner, outputs, targets, index, share, weight=weight,
                label_smoothing=smoothing, **options,
            )  # fmt: skip
        with self.autocast():
            return self.pruner.linear_loss(
                outputs, self.model.head.weight, targets, index, weight=weight,
                bias=self.model.head.bias, label_smoothing=smoothing, **options,
            )  # fmt: skip

    @torch.no_grad()
    def _choose(
        self,
        batch_filter: BatchFilter,
        inputs: Tensor,
        targets: Tensor,
        index: Tensor,
        draw: Tensor,
    ) -> Tensor:
        """Positions in the batch; the loss of the epoch counts all of the batch."""
        self.model.eval()  # BatchNorm's statistics are moved by what is trained on
        with self.autocast():
            logits = self.forward(inputs)
        self.model.train()
        losses = cpfast.ops.scored_cross_entropy(logits, targets).loss
        losses = losses.float().flatten(1).mean(1) if losses.dim() > 1 else losses.float()
        self.loss_sum += losses.mean()
        # A sample's draw counts its passes over the data, so no number comes twice.
        random = Draw(self.config.seed, 0, _FILTER_STREAM)
        uniform = random.uniform(draw * self.data.train_size + index)
        return batch_filter.choose(losses, uniform)

    def moment(self) -> Moment:
        """That of the next epoch."""
        rotations = tuple(self.rotations)
        total, schedule = self.config.epochs, self.schedule.schedule
        lrs = tuple(
            schedule(self.warp.fraction(extension.total_at(self.config, epoch), epoch))
            for epoch in range(min(self.epoch + 1, total))
        )
        end = None if self.spends else self.detector.end_epoch
        return Moment(self.epoch, total, end, rotations, tuple(self.diffusion), lrs)

    def freeze(self, layers: int) -> None:
        """No gradient for what comes before the first layer that is trained on.

        Parameters lie in the order in which the models use them.
        """
        first = self.rotation.weights()[layers]
        is_frozen = layers > 0
        for parameter in self.model.parameters():
            is_frozen = is_frozen and parameter is not first
            parameter.requires_grad_(not is_frozen)

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


def train_epoch(training: Training, progress: Progress | None = None) -> EpochMetrics:
    """One epoch and what it reports."""
    t, config = training, training.config
    moment = t.moment()
    settings = t.recipe.settings(moment)
    with t.clock.whole("train"):
        with t.clock.part("selection"):
            plan, steps = _plan(t, settings, moment)
        with optimizers.decayed(t.optimizer, settings.weight_decay):
            filtered = _run_steps(t, settings, steps, progress)
        rescored = _rescore(t, plan, settings)
        t.ranks.average_buffers(t.model)
        t.ranks.average(t.average.buffers())
        t.ranks.sum(t.loss_sum)
        synced = t.pruner.sync()
        if t.ranks.size > 1:
            t.ranks.count(synced)
        # Of a batch's mean and its size, over the weights, which stand for the samples left out
        # too: it estimates the mean over all.
        own = settings.batch * config.batch_size // t.ranks.size
        summary = [own * t.loss_sum / t.stream.weight_sum()]
        layers = len(t.rotation.names) if config.detect else 0
        if config.detect:
            with t.clock.part("detection"):
                summary += t.probe.all_rotations().double().unbind()
                for values in t.watch.measure(t.probe, t.clock):
                    summary += values.to(t.device).unbind()
        train_loss, *measured = t.ranks.agree(torch.stack(summary)).tolist()
        rotation = measured[:layers]
        mean_rotation = None
        if steps:
            _check_finite("training loss", train_loss, t.epoch + 1)
        if rotation and steps:  # what has not moved says nothing
            # those of layers that are trained: what is frozen does not turn
            turning = rotation[settings.frozen :]
            mean_rotation = math.fsum(turning) / len(turning)
            _check_finite("layer rotation", mean_rotation, t.epoch + 1)
            of_criteria = t.watch.split(measured[layers:])
            for name, numbers in of_criteria.items():
                if len(numbers) == 1:  # of several, one may not be there yet
                    _check_finite(f"measure of {name}", numbers[0], t.epoch + 1)
            with t.clock.part("detection"):
                t.watch.step(of_criteria, t.epoch + 1, t.clock)
    t.rotations.append(tuple(rotation))
    t.epoch += 1
    test_loss = test_accuracy = None
    if t.epoch % config.eval_every == 0 or t.epoch == config.epochs:
        with t.clock.whole("evaluation"):
            test_loss, test_accuracy = evaluate(t, progress)
        # What the last step spoilt shows in no later loss.
        _check_finite("test loss", test_loss, t.epoch)
    collectives, sent = t.ranks.counted()
    trained, scored = _counted(t, settings, steps, filtered, rescored)
    computed, measuring = _flops(t, settings, trained, scored)
    parts = t.clock.read()
    return {
        "epoch": t.epoch,
        "train_loss": train_loss if steps else None,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "chance": t.chance,
        "rotation_mean": mean_rotation,
        "rotation": dict(zip(t.rotation.names, rotation, strict=False)),
        "slope": statistic_of(t.detector, t.epoch),
        "period_end": t.detector.end_epoch,
        "period_end_reason": t.detector.reason,
        "censored": t.detector.censored,
        "criteria": t.watch.lines(t.epoch, parts) if config.detect else {},
        "repeats": settings.repeats,
        "prune": settings.prune,
        "settings": settings._asdict(),
        "bias": t.pruner.bias,
        "planned_samples": len(plan),
        "forward_samples": trained + scored,
        "backward_samples": trained,
        "scored_samples": scored,
        "measured_samples": t.probe.measured_samples,
        "flops": computed,
        "measured_flops": measuring,
        "guard": None,
        "full_samples": _full_samples(t, t.epoch) - _full_samples(t, t.epoch - 1),
        "lr": float(t.optimizer.param_groups[0]["lr"]),
        "communication": {
            "ranks": t.ranks.size,
            "collectives": collectives,
            "bytes": sent,
            "sync_bytes": synced,
        },
        "seconds": _seconds(t, parts, filtered),
    }


def _seconds(t: Training, parts: dict[str, float], filtered: int) -> Seconds:
    return {
        "train": parts["train"],
        "evaluation": parts.get("evaluation", 0.0),
        "preparation": parts.get("preparation", 0.0),
        "detection": parts.get("detection", 0.0),
        "scoring": None if t.captured else parts.get("scoring", 0.0),
        "selection": parts["selection"],
        "forwards": None if t.captured and filtered else parts.get("forwards", 0.0),
    }


def _run_steps(t: Training, settings: EpochSettings, steps: int, progress: Progress | None) -> int:
    """The epoch's steps; returns how many of them chose within their batch."""
    t.model.train()
    t.freeze(settings.frozen)
    t.loss_sum.zero_()
    t.probe.begin(steps)
    batch_filter, lr = t.pruner.batch_filter, settings.lr * t.pruner.lr
    alpha, batches = settings.mixup or settings.cutmix, steps * t.config.accumulate
    t.mixer.begin(settings.shape.mixing, alpha, t.epoch, batches)
    filtered, diffused = 0, 0.0
    for step in range(steps):
        multiplier = t.schedule.step(t.warp.fraction(t.config.epochs, t.epoch, step, steps), lr)
        diffused += diffusion(t.optimizer, t.schedule.base_lrs[0] * multiplier)
        is_filtered = batch_filter is not None and step % batch_filter.every != 0
        filtered += is_filtered
        run_step = t.step_of(settings, batch_filter if is_filtered else None)
        with nullcontext() if run_step.ready else t.preparing():
            run_step()
        if progress is not None:
            progress.step(1 / steps)
    t.diffusion.append(diffused)
    return filtered


@torch.no_grad()
def _rescore(t: Training, plan: LazyPlan, settings: EpochSettings) -> int:
    """Score again what the plan has hidden, in batches of one size; returns the forward samples.

    The last batch is filled up with samples that stand in it already.
    """
    hidden, size = plan.rescored, t.config.batch_size
    if len(hidden) == 0:
        return 0
    t.model.eval()
    draw = torch.full_like(hidden, _first_draw(t))
    positions = torch.arange(-(-len(hidden) // size) * size, device=t.device) % len(hidden)
    with t.clock.part("forwards"):
        for batch in positions[t.ranks.rank :: t.ranks.size].split(size // t.ranks.size):
            index = hidden[batch]
            inputs, targets = t.batches.train(index, draw[batch], settings.shape)
            with t.autocast():
                logits = t.forward(inputs)
            t.pruner.score(logits, targets, index)
    t.model.train()
    return len(positions)


def _counted(
    t: Training, settings: EpochSettings, steps: int, filtered: int, rescored: int
) -> tuple[int, int]:
    """How many samples were trained on, and how many were only scored."""
    batch, batch_filter = settings.batch * t.config.batch_size, t.pruner.batch_filter
    size, times = t.ranks.size, t.config.accumulate
    kept = batch if batch_filter is None else size * batch_filter.kept(batch // size)
    batch, kept = times * batch, times * kept
    return (steps - filtered) * batch + filtered * kept, filtered * batch + rescored


def _flops(
    t: Training, settings: EpochSettings, trained: int, scored: int
) -> tuple[float | None, float | None]:
    """Of the epoch, and of what the criteria measured in it, which is part of that; None: not
    known."""
    cost = t.flops.of(settings.shape)
    if cost is None:
        return None, None
    measuring = 0.0
    if measured := t.ranks.size * t.probe.measured_samples:
        # of samples as they are, and with the gradients that the epoch has
        whole = t.flops.of(FULL._replace(frozen=settings.frozen))
        if whole is None:
            return None, None
        measuring = measured * whole.step
    return trained * cost.step + scored * cost.forward + measuring, measuring


def _full_samples(t: Training, epochs: int) -> int:
    """What k repeats throughout take in so many epochs: whole batches, the rest carried over."""
    batch = t.config.step_size
    return t.passes * t.data.train_size * epochs // batch * batch


def _plan(t: Training, settings: EpochSettings, moment: Moment) -> tuple[LazyPlan, int]:
    """Put the epoch's samples into the stream: the plan, and how many steps it makes."""
    options: dict[str, Any] = {
        "repeats": settings.repeats,
        "prune": settings.prune,
        "keep": settings.keep,
        "period_end": moment.period_end,
    }
    order = t.pruner.plan(t.epoch, **options)
    if t.warp.passes > 1 and settings.repeats == 1 and not settings.prune:
        order = t.warp.order(t.data.train_size, t.epoch, t.config.seed, t.device)
    # All passes choose by the same scores, and are of one length.
    passes = torch.arange(settings.repeats, device=t.device) + _first_draw(t)
    draw = passes.repeat_interleave(len(order) // settings.repeats)
    taken = settings.batch * t.config.accumulate
    steps = t.stream.extend(order, draw, t.pruner.weights(order), taken)
    return t.pruner.prepare(t.epoch, **options), steps


def _first_draw(t: Training) -> int:
    """The number of the epoch's first pass, by which its images are augmented."""
    at = t.warp.position(t.epoch)
    return (at.epoch * t.warp.passes + at.number) * t.passes


def evaluate(training: Training, progress: Progress | None = None) -> tuple[float, float]:
    """Mean cross-entropy and share of the test samples classified correctly, un-augmented.

    Of text, of its characters.
    """
    t = training
    loss = torch.zeros((), dtype=torch.float64, device=t.device)
    correct = torch.zeros((), dtype=torch.int64, device=t.device)
    count = 0
    own = torch.arange(t.ranks.rank, t.data.test_size, t.ranks.size, device=t.device)
    for total, hits in _evaluated(t, t.batches, own, progress):
        loss += total
        correct += hits.sum()
        count += hits.numel()
    of_all = torch.stack([loss, correct.double(), loss.new_tensor(count)])
    total, hits, samples = t.ranks.sum(of_all).tolist()
    return total / samples, hits / samples


def correct(
    training: Training, samples: AnyBatches, count: int, progress: Progress | None = None
) -> Tensor:
    """Which of the first `count` test samples of `samples` are classified correctly, 1 or 0; of
    text, the share of a sequence's characters: float64 [count], on the CPU."""
    index = torch.arange(count, device=training.device)
    parts = [hits for _, hits in _evaluated(training, samples, index, progress)]
    return torch.cat(parts).double().reshape(count, -1).mean(1).cpu()


def _evaluated(
    t: Training, samples: AnyBatches, index: Tensor, progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the test samples at `index`, a batch at a time: summed cross-entropy, and of each output
    whether it is right."""
    model = t.average.model().eval()
    batch = max(1, EVALUATION_BATCH * LARGE // max(LARGE, math.prod(t.data.shape[:2])))
    for some in index.split(batch):
        with torch.inference_mode():
            inputs, targets = samples.test(some)
            with t.autocast():
                scored = _scored(t, model, inputs, targets)
        yield scored
        if progress is not None:
            progress.step(0.0)  # where Ctrl-C is noticed


def _scored(
    t: Training, model: nn.Module, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    if t.hidden is None:
        logits = model(inputs).float()
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
        return loss, logits.argmax(-1) == targets
    assert isinstance(model, WithHead)
    scored = cpfast.ops.scored_linear_cross_entropy(
        model.hidden(inputs), model.head.weight, targets, bias=model.head.bias
    )
    return scored.loss.sum(), scored.correct > 0


def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _check_finite(what: str, value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"training diverged: the {what} of epoch {epoch} is {value}; "
            "try a lower --lr (the epochs before are kept)"
        )
