"""cpfast in the Trainer of transformers, written for its version 5.24."""

from __future__ import annotations

import inspect
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from cpfast import layers
from cpfast.detection import CriticalPeriodDetector
from cpfast.forms import Finite, check
from cpfast.integrations._transformers_clock import Clock
from cpfast.integrations.batches import PlannedBatches
from cpfast.integrations.course import Course
from cpfast.moment import Moment
from cpfast.pruning import DataPruner
from cpfast.recipes import EpochSettings, Recipe
from cpfast.rotation import LayerRotation
from cpfast.sampling import IndexedDataset, PrunedSampler
from cpfast.schedules import FractionLR

try:
    import transformers
    from accelerate.data_loader import BatchSamplerShard
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from transformers.loss.loss_utils import ForCausalLMLoss
    from transformers.optimization import GreedyLR
    from transformers.trainer_utils import has_length

    from cpfast.integrations._lm_head import FusedHead, fuse_lm_head, is_fused, loss_by
except ImportError as error:
    raise ImportError(
        f"cpfast.integrations.transformers: {error}; pip install 'cpfast[transformers]'"
    ) from error

__all__ = [
    "INDEX", "CriticalPeriodCallback", "PrunedTrainer", "PrunedTrainerMixin", "fuse_lm_head"
]  # fmt: skip

logger = logging.getLogger("cpfast")

INDEX = "sample_index"
"""The key of a batch under which its samples' places in the data set stand: [B] int64."""

FILE = "cpfast.pt"
"""In a checkpoint's folder: what is resumed from."""

# What is overridden or called here and is not of the Trainer's public interface.
_HOOKS = {
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
    "_get_collator_with_removed_columns": ("data_collator", "description"),
    "_get_train_sampler": ("train_dataset",),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_remove_unused_columns": ("dataset", "description"),
    "_run_epoch": (
        "epoch",
        "num_update_steps_per_epoch",
        "steps_in_epoch",
        "steps_trained_in_current_epoch",
        "train_dataloader",
    ),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "set_initial_training_values": ("args", "dataloader"),
}
_WEIGHTED = (
    "override compute_loss, give the losses of the samples to self.pruner.weighted(losses, "
    f"inputs.pop({INDEX!r})), and set loss_is_scaled_for_ga = False"
)
# These follow the training by something else than the number of steps.
_STEPLESS = (FractionLR, ReduceLROnPlateau, GreedyLR)


_STATE = {
    "course": dict,
    "clock": {
        "nominal": Finite,
        "total": Finite,
        "epochs": Finite,
        "exact": bool,
        "epoch": int,
        "since": int,
        "updates": int,
        "begun": Finite,
        "ended": bool,
    },
}


class _WithIndex:
    """A collator of items with their index."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[tuple[Any, int]]) -> Any:
        batch = self.collate([item for item, _ in items])
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"data_collator: expected a dictionary of it, got {type(batch).__name__}"
            )
        if INDEX in batch:
            raise ValueError(f"data_collator: {INDEX!r} is a key of its own batches")
        batch[INDEX] = torch.tensor([index for _, index in items])  # type: ignore[index]
        return batch


class CriticalPeriodCallback(TrainerCallback):
    """What :class:`PrunedTrainer`, or a Trainer of :class:`PrunedTrainerMixin`, is to do.

    After each epoch the rotation of the layers is measured and the detector judges; the metrics go
    to the Trainer's log, which TensorBoard and W&B show below ``train/``: ``cpfast/rotation``, the
    mean, ``cpfast/rotation/<layer>``, ``cpfast/kept``, once it has ended ``cpfast/period_end``, and
    with ``energy`` ``cpfast/energy_kwh``. An epoch that ``max_steps`` or a callback's
    ``should_training_stop`` cuts short is not judged.

    Args:
        detector: None: nothing is measured.
        pruner: plans the epochs by the losses of the samples; None: every epoch has all.
        recipe: what each epoch spends; None: one pass over the data, pruned where there is a
            pruner.
        applied: fields of the settings that the model or the Trainer applies by itself, reading
            :attr:`settings`; see :class:`cpfast.integrations.course.Course`.
        energy: whether codecarbon meters the training: of the first process, and its device.

    Attributes:
        course: keeps the state of all of them.

    Raises:
        TypeError: for an argument of another type.
        ValueError: with nothing to do; parts of different lengths; a recipe that changes what is
            not done here and not ``applied``, or prunes without a pruner.
        ImportError: ``energy`` without codecarbon.
    """

    def __init__(
        self,
        detector: CriticalPeriodDetector | None = None,
        *,
        pruner: DataPruner | None = None,
        recipe: Recipe | None = None,
        applied: Sequence[str] = (),
        energy: bool = False,
    ) -> None:
        if detector is None and pruner is None and recipe is None:
            raise ValueError("CriticalPeriodCallback: expected a detector, a pruner or a recipe")
        self.course = Course(detector, pruner=pruner, recipe=recipe, applied=applied, energy=energy)
        self.scores = pruner is not None
        possible = recipe.possible() if recipe is not None else frozenset[EpochSettings]()
        if pruner is None and any(settings.prune for settings in possible):
            raise ValueError("recipe: prunes, and there is no pruner")
        self.plans = pruner is not None or any(settings.repeats != 1 for settings in possible)
        self.clock: Clock | None = None
        self._trainer: Any = None
        self._late = False  # a resume at an epoch's very end, which is still to be judged
        self._inside = False  # a resume in the middle of an epoch

    @property
    def settings(self) -> EpochSettings:
        """Of the current epoch, for who applies them."""
        return self.course.settings

    @property
    def rotation(self) -> LayerRotation | None:
        """None before the training, and where nothing is measured."""
        return self.course.rotation

    # --- events -----------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer is None:
            raise RuntimeError(
                "CriticalPeriodCallback: needs cpfast's PrunedTrainer, or a class "
                "MyTrainer(PrunedTrainerMixin, Trainer): a Trainer alone has no place for what it "
                "does"
            )
        optimizer = self._trainer.optimizer
        self.course.attach(
            self._trainer.model_wrapped, [getattr(optimizer, "optimizer", optimizer)]
        )
        if self._late:
            self._late = False
            assert self.clock is not None
            self.course.begin(self.clock.epoch)
            self._end()
            self.clock.epoch += 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.clock is not None
        self.course.begin(self.clock.epoch)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the schedule's step: where it is to stand after it."""
        scheduler = kwargs.get("lr_scheduler")
        if not self.plans or scheduler is None:
            return
        assert self.clock is not None
        place = self.clock.place(state.global_step + 1)
        if isinstance(scheduler, FractionLR):
            scheduler.fraction = place / self.clock.total
        elif isinstance(scheduler, LambdaLR):
            scheduler.last_epoch = place - 1  # type: ignore[assignment]  # its functions take it

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock = self.clock
        assert clock is not None
        is_whole = state.global_step >= clock.since + clock.updates
        if is_whole and clock.epoch + 1 > clock.epochs and not clock.exact:
            is_whole = False  # the last half of two and a half epochs
        if is_whole or not control.should_training_stop:
            should_log = control.should_log
            self._end()
            control.should_log = should_log  # the Trainer's own, which a log takes back

    def _end(self) -> None:
        assert self.clock is not None
        self._trainer.score_again()
        metrics = self.course.end(rescored=True)
        self.clock.ended = True
        if metrics:
            self._trainer.log(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.save_only_model or self._trainer is None:
            return
        assert self.clock is not None
        saved = {"course": self.course.state_dict(), "clock": asdict(self.clock)}
        if args.should_save:
            folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
            torch.save(saved, os.path.join(folder, FILE))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock = self.clock
        if clock is None or not clock.exact or state.global_step >= args.max_steps:
            return
        if clock.epoch >= clock.epochs:
            warnings.warn(
                f"max_steps: {args.max_steps} were asked for, and after {state.global_step} the "
                f"{clock.epochs:g} epochs of the recipe, the detector or the pruner were over; "
                "make them of more",
                stacklevel=2,
            )

    # --- a resume ---------------------------------------------------------------------------

    def load(self, folder: str, done: int, *, skips: bool) -> tuple[int, int]:
        """Restores what :meth:`on_save` wrote.

        Args:
            folder: of the checkpoint.
            done: updates done.
            skips: whether batches that were trained on are skipped, or the epoch begins again.

        Returns:
            The epoch to go on with, and the updates of it that are done.

        Raises:
            ValueError: nothing was written there, or it does not fit.
        """
        path = os.path.join(folder, FILE)
        if not os.path.isfile(path):
            raise ValueError(
                f"resume_from_checkpoint: {folder} has no {FILE}: it is of a training without "
                "cpfast, or was saved with save_only_model"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        check(state, _STATE, FILE)
        clock, own = Clock(**state["clock"]), self.clock
        assert own is not None
        if (clock.epochs, clock.exact) != (own.epochs, own.exact):
            raise ValueError(
                f"resume_from_checkpoint: {folder} is of a training of {clock.epochs:g} epochs, "
                f"and this one is of {own.epochs:g}"
            )
        self.course.load_state_dict(state["course"])
        if clock.exact:
            clock.total, clock.nominal = own.total, own.nominal
        self.clock = clock
        trained = done - clock.since
        is_whole = trained >= clock.updates
        self._late = self._inside = False
        if clock.ended:
            clock.epoch += 1
            return clock.epoch, 0
        if (clock.exact and done >= clock.total) or (is_whole and clock.epoch + 1 > clock.epochs):
            return math.ceil(clock.epochs), 0  # it has ended, in the middle of an epoch
        if is_whole:
            self._late = True
            return clock.epoch + 1, 0
        self._inside = trained > 0
        if skips:
            return clock.epoch, trained
        clock.again(done)
        return clock.epoch, 0


class PrunedTrainerMixin(Trainer):
    """For a Trainer of your own: ``class MyTrainer(PrunedTrainerMixin, Trainer)``; put a
    :class:`CriticalPeriodCallback` among its callbacks.

    What the Trainer computes once, at its start, is computed for each epoch: its length, the
    updates to come, where the schedule of the learning rate stands; so the schedule reaches its end
    with the training. ``args.max_steps`` counts as usual, but at most the recipe's epochs are
    trained. Each sample of a batch carries its index, whatever the collator. The loss is the
    weighted cross-entropy of the model's logits and labels (shifted for causal language models,
    with label smoothing), divided by ``num_items_in_batch`` where the Trainer counts them: the
    gradient of accumulated batches is that of one batch. It is compared with the model's own loss
    on the first batch of each epoch. Evaluation is the Trainer's.

    Raises:
        RuntimeError: in :meth:`train`: the Trainer's inner methods are not those of the version
            that this was written for; a second training with the same callback.
        ValueError: in :meth:`train`: arguments that would make it wrong in silence, which are
            named.
    """

    # --- what it works with -----------------------------------------------------------------

    @property
    def critical_period(self) -> CriticalPeriodCallback:
        """The callback.

        Raises:
            ValueError: there is none, or several.
        """
        callbacks = self.callback_handler.callbacks
        found = [one for one in callbacks if isinstance(one, CriticalPeriodCallback)]
        if len(found) != 1:
            raise ValueError(
                f"callbacks: expected one CriticalPeriodCallback, got {len(found)} of them"
            )
        return found[0]

    @property
    def pruner(self) -> DataPruner:
        """The callback's.

        Raises:
            ValueError: there is none.
        """
        pruner = self.critical_period.course.pruner
        if pruner is None:
            raise ValueError("pruner: the CriticalPeriodCallback has none")
        return pruner

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's."""
        watch = self.critical_period
        _check_hooks(Trainer)
        self._check_arguments(watch)
        watch._trainer = self
        try:
            return super().train(*args, **kwargs)
        finally:
            watch.course.detach()

    def _check_arguments(self, watch: CriticalPeriodCallback) -> None:
        args: Any = self.args
        if args.auto_find_batch_size:
            raise ValueError("auto_find_batch_size: begins a training again that cpfast has begun")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            name = "deepspeed" if self.is_deepspeed_enabled else "fsdp"
            raise ValueError(
                f"{name}: shards the weights, and so their snapshot, which a checkpoint would have "
                "only one part of"
            )
        if not watch.plans:
            return
        if args.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy: {args.train_sampling_strategy!r}, but the pruner plans "
                "the order; leave it at 'random'"
            )
        for name in ("dispatch_batches", "split_batches"):
            if getattr(args.accelerator_config, name, None):
                raise ValueError(f"accelerator_config.{name}: the pruner's plan is shared out here")
        if args.n_gpu > 1:
            raise ValueError("n_gpu: several in one process; use torchrun, a process for each")
        if getattr(self.accelerator, "parallelism_config", None) is not None:
            raise ValueError("parallelism_config: processes would share samples unnoticed")
        if watch.scores:
            self._check_loss(watch)

    def _check_loss(self, watch: CriticalPeriodCallback) -> None:
        args: Any = self.args
        rule, total = self.pruner.rule, self.pruner.num_epochs
        moments = [Moment(epoch, total) for epoch in range(total)]
        if any(rule.batch_filter(moment, self.pruner.keep) is not None for moment in moments):
            raise ValueError(
                f"pruner: the policy {self.pruner.policy!r} selects within the batches, which is "
                "not done here"
            )
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func: is not told whose losses these are, so that nothing could be "
                f"recorded; {_WEIGHTED}"
            )
        if not self._computes_loss():
            if self.loss_is_scaled_for_ga is None:
                raise ValueError(
                    "loss_is_scaled_for_ga: is None, and compute_loss is overridden: set it to "
                    "False where that gives the mean of its batch, as pruner.weighted does, to "
                    "True where it divides by num_items_in_batch"
                )
            return
        below = _owner(type(self).__mro__, "compute_loss", after=PrunedTrainerMixin)
        if below is not Trainer:
            raise ValueError(
                f"compute_loss: {below.__name__} has its own, which would not be called; "
                f"{_WEIGHTED}"
            )
        fused = (args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True)
        if args.use_liger_kernel and fused:
            raise ValueError(
                "use_liger_kernel: its fused loss gives no logits, so nothing could be recorded; "
                "leave it out with liger_kernel_config={'fused_linear_cross_entropy': False}"
            )

    def _computes_loss(self) -> bool:
        return _owner(type(self).__mro__, "compute_loss") is PrunedTrainerMixin

    # --- the data ---------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's, whose samples carry their index, and are those of the plan."""
        watch = self.critical_period
        if not watch.plans:
            return super().get_train_dataloader()
        trainer: Any = self
        data, collate = trainer.train_dataset, trainer.data_collator
        if data is None:
            raise ValueError("Trainer: training requires a train_dataset.")
        if _is_arrow(data):
            indexed = IndexedDataset(self._remove_unused_columns(data, description="training"))
            own = collate
        else:
            indexed = IndexedDataset(data)
            own = self._get_collator_with_removed_columns(collate, description="training")
        self._sampler_of(watch, indexed)
        self.train_dataset, self.data_collator = indexed, _WithIndex(own)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = data, collate
        self._share_out(loader, watch.course.sampler)
        return loader

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        watch = self.critical_period
        if not watch.plans:
            return super()._get_train_sampler(train_dataset)
        return watch.course.sampler

    def _sampler_of(self, watch: CriticalPeriodCallback, dataset: IndexedDataset) -> None:
        course = watch.course
        if course.sampler is not None:
            return
        pruner = course.pruner
        if pruner is None:  # only repeats them
            pruner = DataPruner(len(dataset), course.total_epochs or 1, policy="random")
        course.use(PrunedSampler(pruner, shard="never", dataset=dataset))

    def _share_out(self, loader: Any, sampler: PrunedSampler | None) -> None:
        """Among the ranks, in place of accelerate, which repeats samples to fill the last batch."""
        args: Any = self.args
        if args.world_size == 1:
            return
        shard = getattr(loader, "batch_sampler", None)
        if not isinstance(shard, BatchSamplerShard) or sampler is None:
            raise RuntimeError(
                "get_train_dataloader: its loader was not made by accelerate's prepare, so that "
                "every process would train on all samples"
            )
        shard.batch_sampler = PlannedBatches(
            sampler,
            self._train_batch_size,
            drop_last=args.dataloader_drop_last,
            num_replicas=args.world_size,
            rank=args.process_index,
        )
        shard.num_processes, shard.process_index, shard.batch_size = 1, 0, None

    @torch.no_grad()
    def score_again(self) -> None:
        """Forward passes of the samples that the policy wants to know the losses of, at the end of
        an epoch that left them out.

        Raises:
            ValueError: where the loss is computed by an overridden ``compute_loss``.
        """
        watch = self.critical_period
        hidden = self.pruner.rescored if watch.scores else torch.empty(0)
        if len(hidden) == 0:
            return
        if not self._computes_loss():
            raise ValueError(
                f"pruner: the policy {self.pruner.policy!r} wants the losses of samples that were "
                "left out, which an overridden compute_loss is not asked for"
            )
        args: Any = self.args
        loader: Any = self._loader
        batches = DataLoader(
            loader.dataset,
            self._train_batch_size,
            sampler=hidden[args.process_index :: args.world_size].tolist(),
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),  # the global one is as if this had not been
        )
        model: Any = self.model
        model.eval()
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            index = inputs.pop(INDEX)
            outputs, labels = self._forward(model, inputs, keeps_labels=False)
            logits, labels = self._aligned(model, _logits(outputs, has_loss=False), labels, index)
            self.pruner.score(logits, labels, index)
        model.train()

    # --- the loss ---------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted cross-entropy in training, which records the samples' losses; in evaluation,
        and without a pruner, the Trainer's.

        Raises:
            ValueError: for a model whose loss is another.
            RuntimeError: for a batch without its samples' index.
        """
        index = inputs.pop(INDEX, None)
        watch = self.critical_period
        if not watch.scores or not model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if index is None:
            raise RuntimeError(
                f"inputs: without {INDEX!r}: build the loader by super().get_train_dataloader()"
            )
        if is_fused(self._base(model)):
            loss, outputs = self._fused_loss(model, inputs, index, num_items_in_batch)
        else:
            loss, outputs = self._loss_of_logits(model, inputs, index, num_items_in_batch)
        args: Any = self.args
        if num_items_in_batch is not None and args.average_tokens_across_devices:
            # of all processes, whose gradients are averaged
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _fused_loss(
        self, model: nn.Module, inputs: dict[str, Any], index: Tensor, total: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        labels = _labels(inputs)
        if len(labels) != len(index):
            raise _other_rows(labels, index)
        args: Any = self.args

        def loss(head: FusedHead, hidden: Tensor) -> Tensor:
            return self.pruner.linear_loss(
                hidden[:, :-1],
                head.weight,
                labels[:, 1:],
                index,
                bias=head.bias,
                num_tokens=total,
                label_smoothing=args.label_smoothing_factor,
                **head.loss_options,
            )

        inputs = {key: value for key, value in inputs.items() if key != "labels"}
        base: Any = self._base(model)
        return loss_by(base, lambda: model(**inputs), loss)

    def _loss_of_logits(
        self, model: nn.Module, inputs: dict[str, Any], index: Tensor, total: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        watch = self.critical_period
        checks = self._checked != watch.course.epoch
        outputs, labels = self._forward(model, inputs, keeps_labels=checks)
        has_loss = checks or self._needs_labels(model)
        logits, labels = self._aligned(model, _logits(outputs, has_loss=has_loss), labels, index)
        if checks:
            _compare(outputs, logits, labels)
            self._checked = watch.course.epoch
        args: Any = self.args
        loss = self.pruner.loss(
            logits,
            labels,
            index,
            label_smoothing=args.label_smoothing_factor,
            num_tokens=total,
        )
        return loss, outputs

    _checked: int | None = None  # the epoch in which the loss was compared with the model's own

    def _forward(
        self, model: nn.Module, inputs: dict[str, Any], *, keeps_labels: bool
    ) -> tuple[Any, Tensor]:
        """The model's outputs, without a loss of its own where it can do without labels."""
        labels = _labels(inputs)
        if not keeps_labels and not self._needs_labels(model):
            inputs = {key: value for key, value in inputs.items() if key != "labels"}
        return model(**inputs), labels

    def _needs_labels(self, model: nn.Module) -> bool:
        base = self._base(model)
        return not isinstance(base, PreTrainedModel) or bool(base.config.is_encoder_decoder)

    def _base(self, model: nn.Module) -> nn.Module:
        base: Any = layers.unwrapped(model)
        return base.get_base_model() if hasattr(base, "get_base_model") else base

    def _aligned(
        self, model: nn.Module, logits: Tensor, labels: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each row of the logits beside its label."""
        if logits.dim() not in (2, 3) or logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels: of shape {list(labels.shape)} do not fit logits {list(logits.shape)}, "
                f"expected [B] and [B, C] or [B, T] and [B, T, C]; {_WEIGHTED}"
            )
        if len(labels) != len(index):
            raise _other_rows(labels, index)
        base = self._base(model)
        shifts = getattr(base, "loss_function", None) is ForCausalLMLoss
        if logits.dim() == 3 and shifts and not self._needs_labels(model):
            return logits[:, :-1], labels[:, 1:]
        return logits, labels

    # --- the length of epochs, and of the training ------------------------------------------

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """The Trainer's; the number of epochs is that of the recipe, the detector or the pruner."""
        watch = self.critical_period
        course = watch.course
        self._loader = dataloader
        if watch.plans and not _follows(dataloader, course.sampler):
            raise RuntimeError(
                "get_train_dataloader: its loader does not follow the pruner's sampler, so it "
                "would never prune; build it by super().get_train_dataloader()"
            )
        ends = bool(has_length(dataloader))
        if not ends:
            raise ValueError("train_dataset: has no length, so that nobody knows where epochs end")
        epochs, *others = super().set_initial_training_values(args, self._loader)
        total = course.total_epochs
        assert total is not None
        if args.max_steps > 0:
            if epochs > total:
                raise ValueError(
                    f"max_steps: {args.max_steps} are more than the {total} epochs of the recipe, "
                    "the detector or the pruner have"
                )
            epochs = total
        elif epochs != total:
            raise ValueError(
                f"num_train_epochs: {args.num_train_epochs:g}, and the recipe, the detector or the "
                f"pruner is of {total} epochs"
            )
        return (epochs, *others)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        if trial is not None:
            raise ValueError("trial: a search of hyperparameters needs a callback for each trial")
        args: Any = self.args
        watch = self.critical_period
        is_first = watch.clock is None
        epochs, exact = args.num_train_epochs, args.max_steps > 0
        nominal = float(num_update_steps_per_epoch)
        if exact:
            epochs, nominal = num_train_epochs, max_steps / num_train_epochs
        watch.clock = Clock(nominal, float(max_steps), float(epochs), exact)
        self._checked, self._trained = None, 0
        began = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            if not is_first:
                raise RuntimeError(
                    "CriticalPeriodCallback: has been through a training; a second one needs a new"
                    " callback, or resume_from_checkpoint"
                )
            return began
        done = self.state.global_step
        skips = not args.ignore_data_skip
        epoch, updates = watch.load(resume_from_checkpoint, done, skips=skips)
        return epoch, updates * args.gradient_accumulation_steps

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The Trainer's, for as many updates as there would be if all epochs were as the first."""
        watch = self.critical_period
        if not watch.plans:
            return super().create_scheduler(num_training_steps, optimizer)
        given = self.lr_scheduler
        if given is not None and not isinstance(given, _STEPLESS):
            raise ValueError(
                f"optimizers: the scheduler {type(given).__name__} counts steps, whose number "
                "changes with the epochs; give cpfast.schedules.FractionLR, or leave it to "
                "args.lr_scheduler_type"
            )
        if watch.clock is not None:
            num_training_steps = int(watch.clock.total)
        made = super().create_scheduler(num_training_steps, optimizer)
        if not isinstance(made, (LambdaLR, *_STEPLESS)):
            raise ValueError(
                f"lr_scheduler_type: {type(made).__name__} counts steps, whose number changes with "
                "the epochs"
            )
        return made

    def _run_epoch(self, *args_: Any, **named: Any) -> None:
        given = inspect.signature(super()._run_epoch).bind(*args_, **named).arguments
        watch = self.critical_period
        clock = watch.clock
        assert clock is not None
        args: Any = self.args
        state: Any = self.state
        if watch.plans:
            batches = len(given["train_dataloader"])
            updates = max(-(-batches // args.gradient_accumulation_steps), 1)
            given |= {"steps_in_epoch": batches, "num_update_steps_per_epoch": updates}
        updates = given["num_update_steps_per_epoch"]
        if watch._inside:
            watch._inside = False
            clock.go_on(updates)
        else:
            clock.begin(state.global_step, updates)
        if watch.plans and not clock.exact:
            state.max_steps = clock.estimate(updates)
        before = state.global_step
        super()._run_epoch(**given)
        if watch.plans:
            planned = len(watch.course.sampler or ())
            self._trained += planned * (state.global_step - before) / updates
        if not self.control.should_training_stop or clock.ended:
            clock.epoch += 1

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float) -> Any:
        state: Any = self.state
        steps = state.global_step - self._initial_global_step
        if self.critical_period.plans and steps > 0:
            # of which the Trainer takes the share of this call's steps, for samples per second
            num_train_samples = self._trained * state.max_steps / steps
        return super()._finalize_training(trial, num_train_samples, start_time)


class PrunedTrainer(PrunedTrainerMixin, Trainer):
    """The Trainer with :class:`PrunedTrainerMixin`."""


def _check_hooks(trainer: type) -> None:
    for name, needed in _HOOKS.items():
        method = getattr(trainer, name, None)
        has = inspect.signature(method).parameters if callable(method) else {}
        if missing := [argument for argument in needed if argument not in has]:
            raise RuntimeError(
                f"transformers {transformers.__version__}: {trainer.__name__}.{name}("
                f"{', '.join(missing)}) is not there; cpfast was written for its version 5.24"
            )


def _owner(kinds: Sequence[type], name: str, after: type | None = None) -> type:
    """The class whose method it is: the first, or the first after another."""
    begin = 0 if after is None else kinds.index(after) + 1
    return next(kind for kind in kinds[begin:] if name in vars(kind))


def _is_arrow(data: Any) -> bool:
    """Whether it is a data set of the library datasets, which drops columns by itself."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(data, datasets.Dataset)


def _follows(loader: Any, sampler: PrunedSampler | None) -> bool:
    """Whether a loader's samples are those of the sampler."""
    while loader is not None and loader is not sampler:
        if isinstance(loader, PlannedBatches):
            return loader.source is sampler
        inner = getattr(loader, "batch_sampler", None)
        loader = getattr(loader, "sampler", None) if inner is None else inner
    return loader is not None


def _logits(outputs: Any, *, has_loss: bool) -> Tensor:
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    else:
        logits = outputs[1 if has_loss else 0]
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"model: gives no logits, but {type(logits).__name__}, as with a loss that is fused "
            f"with the last layer; {_WEIGHTED}"
        )
    return logits


def _compare(outputs: Any, logits: Tensor, labels: Tensor) -> None:
    """
    Raises:
        ValueError: the model's own loss is not the mean cross-entropy.
    """
    own = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if own is None:
        return
    rows = logits.detach().flatten(0, -2).float()
    mean = F.cross_entropy(rows, labels.flatten())
    tolerance = 1e-4 if own.dtype == torch.float32 else 2e-2
    if not torch.allclose(own.detach().float(), mean, rtol=tolerance, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"model: its own loss is {float(own.detach()):.6g}, and the cross-entropy of its "
            f"logits and labels is {float(mean):.6g}: it adds something, or computes another; "
            f"{_WEIGHTED}"
        )


def _labels(inputs: dict[str, Any]) -> Tensor:
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        got = "none" if labels is None else f"{getattr(labels, 'dtype', type(labels))}"
        raise ValueError(f"labels: expected classes or tokens, got {got}; {_WEIGHTED}")
    return labels


def _other_rows(labels: Tensor, index: Tensor) -> ValueError:
    return ValueError(
        f"data_collator: makes {len(labels)} rows of {len(index)} samples, so that their losses "
        "cannot be told apart"
    )
