"""What cpfast does in a training whose loop is somebody else's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cpfast import layers
from cpfast.arguments import typed, whole
from cpfast.detection import CriticalPeriodDetector
from cpfast.detection.probe import ModelProbe
from cpfast.forms import Maybe, Open, Several, check
from cpfast.integrations._metering import Metering
from cpfast.moment import Moment
from cpfast.pruning import DataPruner
from cpfast.recipes import EpochSettings, Recipe
from cpfast.recipes.freeze import Freeze, diffusion
from cpfast.rotation import LayerRotation
from cpfast.sampling import PrunedSampler

__all__ = ["Course"]

logger = logging.getLogger("cpfast")

_UNCHANGED = EpochSettings()
# What is done here, or by the sampler; the rest is the loop's to do.
_DONE = ("repeats", "prune", "keep", "lr", "weight_decay", "frozen")
# Of what criteria may need, what is measured here.
_MEASURED = ("paths", "gradients", "scales")

_STATE = Open(
    {
        "epoch": int,
        "completed": int,
        "begun": Maybe(int),
        "diffused": float,
        "rotations": Several(Several(float)),
        "lrs": Several(float),
        "diffusion": Several(float),
        "detector": Maybe(dict),
        "pruner": Maybe(dict),
        "rotation": Maybe(dict),
        "probe": Maybe(dict),
        "energy": Maybe(dict),
    }
)


class Course:
    """Watches a training, and has it spend what the recipe says: told of each epoch's beginning
    and end by a trainer's callback.

    It owns the layer rotation; plans by the sampler's pruner; multiplies the learning rate and the
    weight decay inside of each optimizer step, so that whatever schedules them is none the wiser;
    freezes layers; and keeps the state of all of these. ::

        course = Course(detector, recipe=recipe, sampler=sampler)
        course.attach(model, [optimizer])
        for epoch in range(course.completed, course.total_epochs):
            settings = course.begin(epoch)  # before the loader is asked for its length
            ...
            metrics = course.end()

    :meth:`epochs` does all of that but the dots.

    Args:
        detector: None: nothing is measured.
        pruner: whose scores are merged over the ranks at an epoch's end; None: the sampler's.
        recipe: None: one pass over the data in each epoch, pruned where there is a pruner.
        sampler: whose epoch is set, and which is given the recipe and the detector where it has
            none.
        applied: fields of the settings that the loop applies by itself, reading :attr:`settings`:
            of "mixup", "cutmix", "augment", "resolution", "length", "batch".
        energy: whether codecarbon meters the training, from the first :meth:`begin` on: of the
            first process, and its device.
        log: is called after each epoch, ``log(metrics, step=completed)``, as ``Accelerator.log``
            or ``wandb.log``, with what :meth:`end` returns.

    Attributes:
        epoch: of the last :meth:`begin`, or the next; from 0.
        completed: how many epochs have ended.
        settings: of this epoch.
        rotation: of the model, from :meth:`attach` on; None where nothing is measured.

    Raises:
        TypeError: for an argument of another type.
        ValueError: a recipe that changes what neither this nor the loop applies, that needs a
            detector, or is for another number of epochs; a criterion that needs more than the
            weights and the gradients; another pruner than the sampler's.
        ImportError: ``energy`` without codecarbon.
    """

    @typed
    def __init__(
        self,
        detector: CriticalPeriodDetector | None = None,
        *,
        pruner: DataPruner | None = None,
        recipe: Recipe | None = None,
        sampler: PrunedSampler | None = None,
        applied: Sequence[str] = (),
        energy: bool = False,
        log: Callable[..., Any] | None = None,
    ) -> None:
        self._metering = Metering(energy)
        self.detector, self.recipe = detector, recipe
        self.pruner: DataPruner | None = None
        self.sampler: PrunedSampler | None = None
        if recipe is not None:
            _check_recipe(recipe, detector, applied)
        if detector is not None:
            _check_detector(detector)
        self.epoch = self.completed = 0
        self.settings = _UNCHANGED
        self.rotation: LayerRotation | None = None
        self._probe: ModelProbe | None = None
        self._optimizers: list[Optimizer] = []
        self._hooks: list[Any] = []
        self._held: list[tuple[Any, Any]] = []  # each group's rate and decay in a step
        self._rotations: list[tuple[float, ...]] = []
        self._lrs: list[float] = []
        self._diffusion: list[float] = []
        self._diffused = 0.0
        self._begun: int | None = None
        self._goes_on = False  # between an epoch's beginning and its end
        self._loops = False
        self._has_said = False
        self._frozen: set[nn.Parameter] = set()
        self._pending: dict[str, Any] | None = None
        self._device = torch.device("cpu")
        self._applied, self._log = tuple(applied), log
        self._warned = False
        if sampler is not None:
            self.use(sampler, pruner)
        else:
            self.pruner = pruner
            self._check_length()

    def _check_length(self) -> None:
        """The pruner stops at a share of its own length, which is 200 where nobody says."""
        total = self.total_epochs
        if self.pruner is not None and self.pruner.num_epochs != total:
            raise ValueError(
                f"pruner: made for num_epochs={self.pruner.num_epochs}, and the recipe or detector "
                f"is of {total} epochs"
            )

    @property
    def total_epochs(self) -> int | None:
        """T, where the recipe, the detector or the pruner says so."""
        if self.recipe is not None:
            return self.recipe.total_epochs
        if self.detector is not None:
            return self.detector.total_epochs
        return None if self.pruner is None else self.pruner.num_epochs

    def use(self, sampler: PrunedSampler, pruner: DataPruner | None = None) -> None:
        """Plans by this sampler from now on.

        Raises:
            ValueError: of another pruner, recipe or detector; or of a recipe or a detector that
                would be refused if they were given.
        """
        pruner = self.pruner if pruner is None else pruner
        for name, own, other in (
            ("pruner", pruner, sampler.pruner),
            ("recipe", self.recipe, sampler.recipe),
            ("detector", self.detector, sampler.detector),
        ):
            if own is not None and other is not None and own is not other:
                raise ValueError(f"sampler: its {name} is another one than the {name} given")
        self.sampler, self.pruner = sampler, sampler.pruner
        if self.detector is None and sampler.detector is not None:
            _check_detector(sampler.detector)
            self.detector = sampler.detector
        if self.recipe is None and sampler.recipe is not None:
            _check_recipe(sampler.recipe, self.detector, self._applied)
            self.recipe = sampler.recipe
        self._check_length()
        sampler.follow(self.recipe, self.detector if self.recipe is not None else None)

    # --- the model --------------------------------------------------------------------------

    def attach(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        """Snapshots the weights, unless a state that was loaded has a snapshot, and hooks into the
        optimizers' steps, of a trainer's wrapper of one into those of what it wraps. Once more for
        the same model does nothing but take new optimizers.

        Raises:
            ValueError: a state that was loaded does not fit the model.
            RuntimeError: a recipe that freezes, and a model whose gradients are synchronised or
                sharded, which would wait for those of the frozen layers, or whose weights are
                computed from several parameters; a criterion that needs whole weights of sharded
                ones.
        """
        model_ = layers.unwrapped(model)
        self._device = next((p.device for p in model_.parameters()), self._device)
        if self.detector is not None and (
            self.rotation is None or self.rotation.model is not model_
        ):
            self.rotation, self._probe = LayerRotation(model), None
        if self._freezes():
            self._check_freezing(model, model_)
        self._hook(list(optimizers))
        if self.rotation is not None and self.detector is not None and self.detector.rule.needs:
            before = self._probe
            self._probe = ModelProbe(
                self.rotation,
                optimizer=self._optimizers[0] if self._optimizers else None,
                losses=None if self.pruner is None else lambda: self.pruner.scores,  # type: ignore[union-attr]
                needs=self.detector.rule.needs,
            )
            if before is not None:
                self._probe.load_state_dict(before.state_dict(within=self._goes_on))
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._restore_measured(pending)

    def _freezes(self) -> bool:
        actions = () if self.recipe is None else self.recipe.actions
        return any(isinstance(action, Freeze) for action in actions)

    def _check_freezing(self, model: nn.Module, inner: nn.Module) -> None:
        kind = type(model).__name__
        if kind in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
            raise RuntimeError(
                f"recipe: freezes layers, and {kind} waits for the gradients of all; leave that out"
            )
        if self.rotation is None:
            return
        parameters = {id(parameter) for parameter in inner.parameters()}
        for name, weight in zip(self.rotation.names, self.rotation.weights(), strict=True):
            if id(weight) not in parameters:
                raise RuntimeError(
                    f"recipe: freezes layers, and {name} is no parameter, but sharded, or computed "
                    "from several; leave that out"
                )

    def _hook(self, optimizers: list[Optimizer]) -> None:
        for hook in self._hooks:
            hook.remove()
        optimizers = [_hooked(optimizer) for optimizer in optimizers]
        self._optimizers = optimizers
        self._hooks = []
        for number, optimizer in enumerate(optimizers):
            self._hooks += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step(is_first=number == 0)),
            ]
        self._held = []

    def detach(self) -> None:
        """Leaves the optimizers and the sampler alone again, and stops the meter."""
        self._metering.stop()
        for hook in self._hooks:
            hook.remove()
        if self.sampler is not None:
            self.sampler.held = False
        self._hooks, self._optimizers = [], []

    def _rate(self) -> float:
        """What the scheduled learning rate is multiplied by."""
        return self.settings.lr * (1.0 if self.pruner is None else self.pruner.lr)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        rate = self._rate()
        decay = self.settings.weight_decay
        self._held = [(g["lr"], g.get("weight_decay", 0.0)) for g in optimizer.param_groups]
        if rate == 1 and decay == 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * rate
            if "weight_decay" in group:
                group["weight_decay"] = group["weight_decay"] * decay

    def _after_step(self, *, is_first: bool) -> Any:
        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for group, (rate, decay) in zip(optimizer.param_groups, self._held, strict=True):
                group["lr"] = rate
                if "weight_decay" in group:
                    group["weight_decay"] = decay
            if is_first:
                rate = self._rate()
                self._diffused += diffusion(
                    optimizer, rate * float(optimizer.param_groups[0]["lr"])
                )
                if self._probe is not None:
                    self._probe.after_step()

        return after

    # --- an epoch ---------------------------------------------------------------------------

    def moment(self, epoch: int) -> Moment:
        """What the recipe is told of an epoch, from 0.

        Raises:
            ValueError: nothing says how long the training is.
        """
        total = self.total_epochs
        if total is None:
            raise ValueError("total_epochs: not known without a recipe, a detector or a pruner")
        rate = [float(self._optimizers[0].param_groups[0]["lr"])] if self._optimizers else []
        end = None if self.detector is None else self.detector.end_epoch
        return Moment(
            epoch,
            total,
            end,
            tuple(self._rotations[:epoch]),
            tuple(self._diffusion[:epoch]),
            (*self._lrs[:epoch], *rate),
        )

    @typed
    def begin(self, epoch: int) -> EpochSettings:
        """Before epoch ``epoch`` (from 0), and before its loader is asked for its length. Once more
        for the same epoch changes nothing.

        Raises:
            ValueError: an epoch beyond the recipe's.
        """
        epoch = whole("epoch", epoch, least=0)
        if self.recipe is not None:
            self.settings = self.recipe.settings(self.moment(epoch))
        elif self.pruner is not None:
            self.settings = _UNCHANGED._replace(prune=True)
        if self.sampler is not None:
            self.sampler.held = False
            self.sampler.set_epoch(epoch)
            self.sampler.held = True
        self.epoch = epoch
        if self._begun != epoch:
            self._begun, self._diffused, self._goes_on = epoch, 0.0, True
            if self._optimizers:
                rate = float(self._optimizers[0].param_groups[0]["lr"])
                self._lrs = [*self._lrs[:epoch], rate]
            if self._probe is not None:
                self._probe.begin()
        self._freeze()
        self._metering.start(self._device)
        return self.settings

    def _freeze(self) -> None:
        """No gradient for what comes before the first layer that is trained on, in the order of
        the model's parameters."""
        if self.rotation is None or not self._freezes():
            return
        first = self.rotation.weights()[self.settings.frozen]
        is_frozen = self.settings.frozen > 0
        for parameter in self.rotation.model.parameters():
            is_frozen = is_frozen and parameter is not first
            if is_frozen and parameter.requires_grad:
                self._frozen.add(parameter)
                parameter.requires_grad_(False)
            elif not is_frozen and parameter in self._frozen:  # not what others have frozen
                self._frozen.discard(parameter)
                parameter.requires_grad_(True)

    def end(self, *, rescored: bool = False) -> dict[str, float]:
        """After the epoch that was begun: merges the scores of all ranks, measures, and judges.

        A collective under torch.distributed: every process must call it. Once more for the same
        epoch measures nothing.

        Args:
            rescored: whether the loop has scored again what the policy wants to be.

        Returns:
            For a log: ``cpfast/rotation``, the mean, ``cpfast/rotation/<layer>``, ``cpfast/kept``,
            the share of full passes that was planned, once it has ended ``cpfast/period_end``, and
            with ``energy`` the kWh used so far, ``cpfast/energy_kwh``.
        """
        if not rescored:
            self._say_what_is_left()
        self.sync()
        metrics: dict[str, float] = {}
        completed = self.epoch + 1
        if self.detector is not None:
            metrics |= self._measure(self.detector, completed)
            if self.detector.end_epoch is not None:
                metrics["cpfast/period_end"] = float(self.detector.end_epoch)
        if self.pruner is not None and self.pruner.planned is not None:
            metrics["cpfast/kept"] = self.pruner.kept
        if (kwh := self._metering.kwh(self._device)) is not None:
            metrics["cpfast/energy_kwh"] = kwh
        self._check_planned()
        self._diffusion = [*self._diffusion[: self.epoch], self._diffused]
        self.completed, self._goes_on = completed, False
        if self.sampler is not None:
            self.sampler.held = False
        if self._log is not None:
            self._log(metrics, step=completed)
        return metrics

    def _check_planned(self) -> None:
        if self.sampler is None or self._warned:
            return
        planned = self.sampler.pruner.planned
        if planned is None or planned[0] != self.epoch:
            self._warned = True
            warnings.warn(
                f"sampler: epoch {self.epoch} has ended, and nothing was drawn from it, so that "
                "nothing is pruned: the loader has another sampler, as after a trainer has made it "
                "anew",
                stacklevel=3,
            )

    def _measure(self, detector: CriticalPeriodDetector, completed: int) -> dict[str, float]:
        if self.rotation is None:
            raise RuntimeError("Course: call attach(model) before the first epoch ends")
        measured = self.rotation.update()
        last = detector.history[-1][0] if detector.history else 0
        if completed > last:
            if self._probe is not None:
                value = detector.rule.measure(self._probe)
            else:
                value = self.rotation.mean()
            if detector.step(value, completed):
                logger.info(
                    "the critical period has ended after epoch %d: %s", completed, detector.reason
                )
        layers_ = measured.tolist()
        self._rotations = [*self._rotations[: completed - 1], tuple(layers_)]
        return {
            "cpfast/rotation": float(self.rotation.mean()),
            **{
                f"cpfast/rotation/{name}": value
                for name, value in zip(self.rotation.names, layers_, strict=True)
            },
        }

    def epochs(self, model: nn.Module | None = None, *optimizers: Optimizer) -> Iterator[int]:
        """The epochs that are left, each begun before the body of the loop over them and ended
        after it; of a model that is given, which is attached first. ::

            for epoch in course.epochs(model, optimizer):
                for (inputs, target), index in loader:
                    ...

        :meth:`load_state_dict` comes before it. A state that was saved in the body, after all of
        the epoch's samples were recorded, goes on with the next epoch; one that was saved before,
        with the same epoch, of whose batches the loader has to skip those that were trained on.

        Raises:
            ValueError: nothing says how long the training is.
        """
        if model is not None:
            self.attach(model, optimizers)
        total = self.moment(0).total_epochs
        try:
            for epoch in range(self.completed, total):
                self.begin(epoch)
                self._loops = True
                yield epoch
                self._loops = False
                self.end()
        finally:
            self._metering.stop()

    def _say_what_is_left(self) -> None:
        """Once, of a policy that wants more of a loop than its samples and a loss."""
        plan = None if self.pruner is None else self.pruner._lazy_plan
        if self.pruner is None or plan is None or self._has_said:
            return
        hidden, selects = len(plan.rescored), self.pruner.batch_filter is not None
        if hidden:
            logger.warning(
                "the policy %r has %d samples scored again after the steps of epoch %d, which is "
                "the loop's to do, by pruner.score", self.pruner.policy, hidden, self.epoch
            )  # fmt: skip
        if selects:
            logger.warning(
                "the policy %r selects within the batches, which is the loop's to do, by "
                "pruner.batch_filter", self.pruner.policy
            )  # fmt: skip
        self._has_said = hidden > 0 or selects

    def _is_trained(self) -> bool:
        """Whether nothing is left of the epoch that was begun."""
        if self.pruner is None or self.pruner.planned is None or self._begun != self.completed:
            return False
        # equal shares leave out fewer samples than there are ranks
        ranks = 1 if self.sampler is None else self.sampler.num_replicas
        return self.pruner.planned[0] == self._begun and self.pruner.remaining < ranks

    def sync(self) -> None:
        """Merges the scores of all ranks; a collective under torch.distributed."""
        if self.pruner is not None:
            self.pruner.sync()

    # --- the state --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of the detector, the pruner, the rotation, and what was measured: plain Python and
        tensors. Merges the scores of all ranks first: a collective under torch.distributed. In the
        body of :meth:`epochs`, ends an epoch of which all samples were recorded."""
        self.sync()
        if self._loops and self._is_trained():
            self.end()
        self._metering.read()
        parts = {"detector": self.detector, "pruner": self.pruner}
        rotation, probe = self.rotation, self._probe
        return {
            "epoch": self.epoch,
            "completed": self.completed,
            "begun": self._begun if self._goes_on else None,
            "diffused": float(self._diffused),
            "rotations": [list(layer) for layer in self._rotations],
            "lrs": list(self._lrs),
            "diffusion": list(self._diffusion),
            **{name: None if part is None else part.state_dict() for name, part in parts.items()},
            # of sharded weights the whole, for trainers have one process write it
            "rotation": None if rotation is None else rotation.state_dict(full=True),
            "probe": None if probe is None else probe.state_dict(within=self._goes_on),
            "energy": self._metering.used,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; what is of the model's weights at :meth:`attach`, where that
        is still to come.

        Raises:
            ValueError: where something is missing, of another type, or does not fit.
        """
        check(state, _STATE, "state_dict")
        for name in ("detector", "pruner"):
            own = getattr(self, name)
            if (own is None) != (state[name] is None):
                has, lacks = ("no", "a") if own is None else ("a", "no")
                raise ValueError(
                    f"state_dict[{name!r}]: is of a training with {lacks} {name}, and this one has "
                    f"{has}"
                )
            if own is not None:
                own.load_state_dict(state[name])
        self.epoch, self.completed = state["epoch"], state["completed"]
        self._begun, self._diffused = state["begun"], state["diffused"]
        self._goes_on = self._begun is not None
        self._rotations = [tuple(layer) for layer in state["rotations"]]
        self._lrs, self._diffusion = list(state["lrs"]), list(state["diffusion"])
        self._metering.used = state["energy"]
        measured = {name: state[name] for name in ("rotation", "probe")}
        if self.rotation is None:
            self._pending = measured
        else:
            self._restore_measured(measured)

    def _restore_measured(self, measured: dict[str, Any]) -> None:
        for name, own in (("rotation", self.rotation), ("probe", self._probe)):
            if own is not None and measured[name] is not None:
                own.load_state_dict(measured[name])


def _hooked(optimizer: Any) -> Optimizer:
    """The optimizer whose step() calls hooks: wrappers (Accelerate's, Fabric's) have none."""
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks"):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            kind = type(optimizer).__name__
            raise TypeError(f"optimizers: expected one of torch's, or a wrapper, got a {kind}")
    return inner


def _check_detector(detector: CriticalPeriodDetector) -> None:
    if missing := set(detector.rule.needs) - set(_MEASURED):
        raise ValueError(
            f"detector: the criterion {detector.criterion!r} needs {', '.join(sorted(missing))}"
            f" of a probe, and in a trainer's own loop there are {', '.join(_MEASURED)} alone; "
            "choose another, or call detector.step() with what you measure"
        )


def _check_recipe(
    recipe: Recipe, detector: CriticalPeriodDetector | None, applied: Sequence[str]
) -> None:
    theirs = [name for name in EpochSettings._fields if name not in _DONE]
    for name in applied:
        if name not in theirs:
            raise ValueError(f"applied: expected some of {', '.join(theirs)}, got {name!r}")
    if detector is None and recipe.uses_detector:
        raise ValueError("recipe: changes when the critical period ends, and there is no detector")
    if detector is not None and detector.total_epochs != recipe.total_epochs:
        raise ValueError(
            f"recipe: of {recipe.total_epochs} epochs, and the detector is of "
            f"{detector.total_epochs}"
        )
    for settings in recipe.possible():
        for name in theirs:
            if name not in applied and getattr(settings, name) != getattr(_UNCHANGED, name):
                raise ValueError(
                    f"recipe: changes {name}, which is the loop's to do: apply "
                    f"callback.settings.{name} in it, and say so by applied=[{name!r}]"
                )
