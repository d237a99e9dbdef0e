"""cpfast in Lightning's Trainer, written for its version 2.6."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from cpfast.arguments import typed
from cpfast.detection import CriticalPeriodDetector
from cpfast.forms import check
from cpfast.integrations import _lightning_loops as loops
from cpfast.integrations import plain
from cpfast.integrations.batches import KEPT, PlannedBatches
from cpfast.integrations.course import Course
from cpfast.moment import Moment
from cpfast.pruning import DataPruner
from cpfast.recipes import EpochSettings, Recipe
from cpfast.rotation import LayerRotation
from cpfast.sampling import PrunedSampler

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl  # type: ignore[no-redef]
    except ImportError as error:
        raise ImportError(
            "cpfast.integrations.lightning needs Lightning: pip install 'cpfast[lightning]'"
        ) from error

__all__ = ["CriticalPeriodCallback", "prepare"]

_STATE = {"course": dict}


@typed
def prepare(
    loader: DataLoader,
    epochs: int,
    *,
    recipe: str | Recipe = "detector+prune",
    repeats: int = 1,
    detector: CriticalPeriodDetector | None = None,
    pruner: DataPruner | None = None,
    applied: Sequence[str] = (),
    seed: int = 0,
    log: bool = True,
    energy: bool = False,
) -> tuple[CriticalPeriodCallback, DataLoader]:
    """What a training by a recipe needs, and the loader that follows it. ::

        watch, loader = prepare(loader, epochs=30)
        trainer = Trainer(max_epochs=30, callbacks=[watch])

    In a training step then, ``(inputs, target), index = batch`` and
    ``watch.pruner.loss(logits, target, index)``. The new loader has the batch size, the workers and
    all else of the given one; in several processes each gets its share of the plan.

    Args:
        loader: shuffles a map-style data set, by ``shuffle=True``, whose place the plan takes.
        epochs: length of the training.
        recipe: or its name.
        repeats: passes over the data in an epoch of a named recipe's beginning; the papers' is 3.
        detector: None: ``CriticalPeriodDetector("slope45", epochs)``.
        pruner: None: ``DataPruner(len(dataset), epochs)``, InfoBatch's.
        applied, log, energy: as :class:`CriticalPeriodCallback` takes them.
        seed: of the plans, where there is no pruner.

    Raises:
        TypeError: for an argument of another type, or an iterable-style data set.
        ValueError: for a loader in another order than a shuffled one; what the callback refuses.
    """
    course, planned = plain.prepare(
        loader, epochs, recipe=recipe, repeats=repeats, detector=detector, pruner=pruner,
        applied=applied, seed=seed,
    )  # fmt: skip
    watch = CriticalPeriodCallback(
        course.detector, recipe=course.recipe, applied=applied, log=log, energy=energy
    )
    batches = planned.batch_sampler
    assert isinstance(batches, PlannedBatches) and course.pruner is not None
    # by a sampler that shares out, since Lightning replaces batch samplers in several processes
    sampler = PrunedSampler(course.pruner)
    watch.course.use(sampler)
    options = {name: getattr(loader, name) for name in KEPT}
    return watch, DataLoader(
        planned.dataset,
        batches.batch_size,
        sampler=sampler,
        drop_last=batches.drop_last,
        collate_fn=planned.collate_fn,
        **options,
    )


class CriticalPeriodCallback(pl.Callback):
    """Watches a training by Lightning's Trainer, and has it spend what the recipe says.

    It measures the rotation of the module's layers after each epoch, lets the detector judge, and
    keeps the state of all in the checkpoint. Where the training's loader has a
    :class:`~cpfast.PrunedSampler`, it chooses its epoch before the loader is iterated, and computes
    anew what Lightning computes once: the number of batches, after which of them is validated, and
    the place in the schedule of a :class:`~cpfast.schedules.FractionLR` or OneCycleLR. Where the
    policy has left out samples whose losses it wants to know (``kakurenbo``), the module's
    ``score_step(batch)`` is called on them at the epoch's end, without gradients, and returns
    ``(logits, target, index)``. ::

        pruner = cpfast.DataPruner(len(dataset), num_epochs=20)
        sampler = cpfast.PrunedSampler(pruner)
        loader = DataLoader(cpfast.IndexedDataset(dataset), 64, sampler=sampler)
        detector = cpfast.CriticalPeriodDetector("slope45", total_epochs=20)
        trainer = Trainer(max_epochs=20, callbacks=[CriticalPeriodCallback(detector)])

    It is the first of the callbacks, wherever it stands among them: so the others see the numbers
    of this epoch, and what they do to the weights at its end is not measured.

    Args:
        detector: None: nothing is measured.
        pruner: None: that of the loader's sampler.
        recipe: what each epoch spends; None: that of the loader's sampler, without one a pass over
            the data in each epoch, pruned where there is a pruner.
        applied: fields of the settings that the module applies by itself, reading
            :attr:`settings`; see :class:`~cpfast.integrations.course.Course`.
        log: whether the module's loggers, and callbacks that monitor, are told
            ``cpfast/rotation``, the mean, ``cpfast/rotation/<layer>``, ``cpfast/kept`` and, once
            it has ended, ``cpfast/period_end``.
        energy: whether codecarbon meters the training; logs ``cpfast/energy_kwh``, of the first
            process and its device.

    Attributes:
        course: keeps the state of all of them.

    Raises:
        TypeError: for an argument of another type.
        ValueError: a recipe that changes what is not done here and not ``applied``, or needs a
            detector; parts of different lengths.
        ImportError: ``energy`` without codecarbon.
    """

    @typed
    def __init__(
        self,
        detector: CriticalPeriodDetector | None = None,
        *,
        pruner: DataPruner | None = None,
        recipe: Recipe | None = None,
        applied: Sequence[str] = (),
        log: bool = True,
        energy: bool = False,
    ) -> None:
        super().__init__()
        self.course = Course(detector, pruner=pruner, recipe=recipe, applied=applied, energy=energy)
        self._logs = log  # Lightning sets log of its callbacks
        self._state: dict[str, Any] | None = None  # that was loaded, before the sampler is there
        self._loader_states: list[Any] = []
        self._is_evaluating = False
        self._varies = False

    @property
    def pruner(self) -> DataPruner:
        """Whose ``loss`` a training step returns.

        Raises:
            RuntimeError: there is none, or none yet.
        """
        if self.course.pruner is None:
            raise RuntimeError("CriticalPeriodCallback: has no pruner, or not before the training")
        return self.course.pruner

    @property
    def settings(self) -> EpochSettings:
        """Of the current epoch, for who applies them."""
        return self.course.settings

    @property
    def rotation(self) -> LayerRotation | None:
        """None before the training, and where nothing is measured."""
        return self.course.rotation

    # --- hooks, in their order --------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        trainer.callbacks = [self, *(c for c in trainer.callbacks if c is not self)]
        # so that what asks for the first epoch's length gets it by the recipe
        sampler = loops.given_sampler(trainer)
        if sampler is not None:
            self.course.use(sampler)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """After the state of everything else is restored, and before the first epoch's hooks."""
        loops.check_trainer(trainer, pl.__version__)
        loops.resume_cleanly(trainer)
        course, epoch = self.course, trainer.fit_loop.epoch_progress.current.processed
        self._find(trainer)
        self._check(trainer)
        resumes = self._restore()
        course.attach(trainer.model, trainer.optimizers)
        if resumes and course.epoch == course.completed == epoch - 1:
            self._end(trainer, pl_module, late=True)
        if course.completed != epoch:
            raise RuntimeError(
                f"CriticalPeriodCallback: has been through {course.completed} epochs, and the "
                f"training begins with epoch {epoch}: resume by ckpt_path from a checkpoint that "
                "has its state, or begin anew with a new callback"
            )
        self._varies = self._plans()
        if trainer.fit_loop.restarted_mid_epoch:  # this epoch has no on_train_epoch_start
            self._begin(trainer, goes_on=True)
        self._loader_states = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._find(trainer)  # again: a loader that is reloaded may have another sampler
        self._begin(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.lr_scheduler_configs:
            fraction = loops.fraction_done(trainer, self.course.total_epochs, batch_idx)
            loops.place_schedules(trainer, fraction, counts=not self._varies)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.course.detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            if self._state is not None:  # nothing was left to train
                self._find(trainer)
                self._restore()
            self.course.detach()

    # --- an epoch ---------------------------------------------------------------------------

    def _plans(self) -> bool:
        """Whether an epoch's number of batches may be another than that of the first."""
        course = self.course
        possible = course.recipe.possible() if course.recipe is not None else frozenset()
        return course.pruner is not None or any(s.repeats != 1 for s in possible)

    def _find(self, trainer: Any) -> None:
        sampler = loops.pruned_sampler(trainer)
        if sampler is None:
            if self._plans() or loops.given_sampler(trainer) is not None:
                raise RuntimeError(
                    "train_dataloader: its samples do not come from a PrunedSampler, so that "
                    "nothing would be pruned or repeated; give it as sampler=. Lightning replaces "
                    "the sampler for overfit_batches, and in several processes that of a "
                    "batch_sampler=, unless Trainer(use_distributed_sampler=False)"
                )
            return
        if sampler is not self.course.sampler:
            self.course.use(sampler)
        loops.share_out(trainer, sampler)

    def _check(self, trainer: Any) -> None:
        course, strategy = self.course, trainer.strategy
        if course.detector is None and course.pruner is None and course.recipe is None:
            raise ValueError(
                "CriticalPeriodCallback: expected a detector, a pruner or a recipe, or a loader "
                "with a PrunedSampler"
            )
        splits = type(strategy).__name__ == "FSDPStrategy" or getattr(
            strategy, "zero_stage_3", False
        )
        if splits and course.detector is not None:
            raise RuntimeError(
                f"strategy: {type(strategy).__name__} hides the weights in flat pieces, whose "
                "layers cannot be measured; use ModelParallelStrategy, or no detector"
            )
        self._check_epochs(trainer)
        if course.pruner is not None:
            self._check_pruner(trainer, course.pruner)
        if self._plans():
            for name in loops.uncounted(trainer):
                warnings.warn(
                    f"lr_scheduler: {name} counts steps, whose number changes with the epochs, so "
                    "that a schedule for a number of them (estimated_stepping_batches is that of "
                    "epochs as the first) ends early or late; cpfast.schedules.FractionLR follows "
                    "the share of the training that is done",
                    stacklevel=2,
                )

    def _check_epochs(self, trainer: Any) -> None:
        """
        Raises:
            ValueError: of a recipe, a detector or a pruner of fewer epochs than the training has.
        """
        total, epochs = self.course.total_epochs, trainer.max_epochs
        if total is None or epochs in (None, -1) or trainer.fast_dev_run:
            return
        message = (
            f"max_epochs: {epochs}, and the recipe, the detector or the pruner was made for {total}"
        )
        if total < epochs:
            raise ValueError(message)
        if total > epochs:
            warnings.warn(f"{message}, of which the end is left out", stacklevel=2)

    def _check_pruner(self, trainer: Any, pruner: DataPruner) -> None:
        rule, total = pruner.rule, pruner.num_epochs
        moments = [Moment(epoch, total) for epoch in range(total)]
        if any(rule.batch_filter(moment, pruner.keep) is not None for moment in moments):
            raise ValueError(
                f"pruner: the policy {pruner.policy!r} selects within the batches, which is not "
                "done here"
            )
        limit = trainer.limit_train_batches
        if (isinstance(limit, int) or limit != 1) and not trainer.fast_dev_run:  # 1 is one batch
            warnings.warn(
                f"limit_train_batches: {limit} leaves out of each epoch what "
                "comes after so many of its batches, on top of what the pruner leaves out",
                stacklevel=2,
            )

    def _begin(self, trainer: Any, *, goes_on: bool = False) -> None:
        """The epoch is chosen, and what was computed or iterated before that, anew."""
        course = self.course
        course.begin(trainer.fit_loop.epoch_progress.current.processed)
        if course.sampler is not None:
            loops.fit_lengths(trainer, course.sampler)
        if goes_on:
            loops.go_on(trainer, course.sampler, self._loader_states)
        elif course.sampler is not None:
            loops.iterate_anew(trainer, course.sampler)

    def _end(self, trainer: Any, pl_module: Any, *, late: bool = False) -> None:
        """
        Args:
            late: after a resume from what was saved at its last batch, outside of its hooks.
        """
        self._score(trainer, pl_module)
        metrics = self.course.end(rescored=True)
        if not self._logs:
            return
        if late:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)
        else:
            pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)

    @torch.no_grad()
    def _score(self, trainer: Any, pl_module: Any) -> None:
        """The samples that the policy wants to know the losses of and has left out."""
        sampler = self.course.sampler
        hidden = None if sampler is None else sampler.pruner.rescored
        if sampler is None or hidden is None or len(hidden) == 0:
            return
        if not callable(getattr(pl_module, "score_step", None)):
            raise RuntimeError(
                f"pruner: the policy {sampler.pruner.policy!r} wants the losses of {len(hidden)} "
                f"samples that were left out: give {type(pl_module).__name__} a method "
                "score_step(self, batch) that returns (logits, target, index)"
            )
        loader = next(
            one
            for one in trainer.fit_loop._combined_loader.flattened
            if loops.sampler_of(one) is sampler
        )
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
        batches = DataLoader(
            loader.dataset,
            size,
            sampler=hidden[sampler.rank :: sampler.num_replicas].tolist(),
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),  # the global one is as if this had not been
        )
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        with trainer.precision_plugin.val_step_context():
            for batch in batches:
                batch = trainer.strategy.batch_to_device(batch)
                sampler.pruner.score(*pl_module.score_step(batch))
        for module, mode in modes:
            module.training = mode

    # --- the state --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors. Merges the scores of all ranks: a collective under
        torch.distributed."""
        if self._state is not None:
            return self._state
        return {"course": self.course.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores :meth:`state_dict` when the training starts, whose loader has the sampler.

        Raises:
            ValueError: where something is missing or of another type.
        """
        if self._is_evaluating:
            self._is_evaluating = False
            return
        check(state_dict, _STATE, "state_dict")
        self._state = state_dict

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: a training is to be resumed from a checkpoint without this callback's state.
        """
        has_state = self.state_key in checkpoint["callbacks"]
        if trainer.state.fn != "fit":
            self._is_evaluating = has_state  # and the training stays where it is
            return
        if not has_state:
            raise ValueError(
                "ckpt_path: of a training without CriticalPeriodCallback, whose state it would go "
                "on from; load its weights by load_from_checkpoint, and begin anew"
            )
        # taken from Lightning, which would load them before the epoch is known, or not at all
        # where configure_optimizers asks for estimated_stepping_batches
        loop = checkpoint["loops"]["fit_loop"]["state_dict"]
        self._loader_states = loop.pop("combined_loader", [])

    def _restore(self) -> bool:
        """Whether a training goes on."""
        if self._state is None:
            return False
        state, course = self._state["course"], self.course
        self._state = None
        if state["begun"] is None and state["completed"] == 0:
            # of one that had not begun, nor found its sampler: LearningRateFinder goes back there
            if course.pruner is not None and state["pruner"] is not None:
                course.pruner.load_state_dict(state["pruner"])
            return False
        course.load_state_dict(state)
        return True
