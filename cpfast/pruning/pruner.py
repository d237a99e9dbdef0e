"""Dynamic data pruning: which samples an epoch trains on, and how their losses are weighted."""

from __future__ import annotations

import math
import warnings
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpfast.arguments import (
    allocating,
    fraction,
    real,
    typed,
    whole,
)
from cpfast.forms import Finite, Open, Plain, Table, check, shown
from cpfast.moment import Moment
from cpfast.pruning.element_losses import ElementLosses
from cpfast.pruning.plan import LazyPlan, Shuffled
from cpfast.pruning.policy import (
    COLUMNS,
    BatchFilter,
    Chosen,
    Draw,
    Policy,
    Samples,
    TokenFilter,
    policies,
)
from cpfast.pruning.recorder import world_size

__all__ = ["DataPruner"]

_SETTINGS = ("num_samples", "num_epochs", "keep", "anneal", "seed")
_STATE = Open(
    {
        "num_samples": int,
        "num_epochs": int,
        "keep": Finite,
        "anneal": Finite,
        "seed": int,
        "policy": str,
        "options": Table(Plain),
        "columns": Table(Tensor),
        "state": Table(Tensor),
        "columns_then": Table(Tensor),
        "planned": {
            "epoch": int,
            "repeats": int,
            "prune": bool,
            "keep": Finite,
            "period_end": int,
        },
        "recorded": int,
        "earlier": {"planned": int, "seen": int, "full": int},
    },
    {"reference": int},
)
_ASKED = {"repeats": 1, "prune": True, "keep": None, "period_end": None}
_MOST_REPEATS = 2**16  # each is a selection, and an order of its own
_ROWS = 1024  # of a reference that is looked at at once
_BIAS_UNITS = 2**40  # a share, read among integers
_CAUSES = (
    "Usual causes: a loader that asked for the sampler's length once (call set_epoch, and let it "
    "read the length each epoch), a second sharding by a trainer, drop_last, a limit of batches, "
    "losses that do not go through the pruner"
)


class _Planned(NamedTuple):
    """What the current plan was asked for."""

    epoch: int
    repeats: int
    prune: bool
    keep: float
    period_end: int | None


class _Selected(NamedTuple):
    """The passes of an epoch, the weights of all samples, what those miss, and how many samples
    were recorded before."""

    plan: LazyPlan
    weights: Tensor
    bias: float | None
    recorded: int


class DataPruner(ElementLosses):
    """Keeps what the loss says of each sample, and plans each epoch from it.

    The policies are in :data:`cpfast.policies`: ``"infobatch"`` (arXiv 2303.04947) leaves out some
    of the samples below the mean loss and weights the others up, ``"random"`` (arXiv 2305.18424)
    draws a fresh subset an epoch; ``cpfast list`` shows all. Under each, epochs from
    ceil(anneal * num_epochs) on are full, with weights 1 (InfoBatch's own code takes the floor).
    ``anneal=1`` prunes to the end.

    The plan is a function of what was recorded, the seed and the epoch: after :meth:`sync` it is
    the same on every rank, and resuming needs no generator's state. What is recorded lives on one
    device and never visits the host; :meth:`prepare` and :meth:`plan` read a few integers once an
    epoch.

    Args:
        num_samples: N, the size of the data set.
        num_epochs: length of the training in epochs.
        policy: a name, or a :class:`~cpfast.pruning.Policy`.
        keep: share that is kept, in (0, 1], as the policy means it; None: what its source keeps,
            .5 for most (:attr:`Policy.keep <cpfast.pruning.Policy.keep>`).
        anneal: fraction of the training after which epochs are full, in [0, 1].
        seed: of all random choices.
        device: where the scores live; None: the CPU, until the first logits come, then theirs.
        nan: what the next plan does about a score that is NaN: "raise", or "keep" the sample, to
            train on it again.
        strict: what the next plan does where another number of samples was recorded than planned:
            False warns, once; True raises; None does not look. Fewer than there are ranks may be
            missing, as of equal shares.
        labels: [N] integers from 0 on, the samples' classes, for policies that look at them.
        reference: [N, T] floating, finite: losses of another model for each target of each
            sample, for policies that select among tokens; what stands where one is ignored does
            not matter. It lies where the scores do: without a copy where it does already.
        options: the policy's own, such as ``confidence`` of kakurenbo.

    Attributes:
        policy: its name; of a policy that was given as an object, its class's.
        rule: the policy itself.
        bias: the share of all samples' losses that the current plan's weights miss in expectation,
            where the policy knows.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for an unknown policy, numbers out of range, more samples than fit, labels
            that are missing or of another shape, or a reference of another shape, that is not
            finite, or that the policy does not look at.
    """

    @typed
    @torch.inference_mode(False)  # what it makes is written to in training
    def __init__(
        self,
        num_samples: int,
        num_epochs: int = 200,
        policy: str | Policy = "infobatch",
        keep: float | None = None,
        anneal: float = 0.875,
        seed: int = 0,
        device: torch.device | str | None = None,
        *,
        nan: str = "raise",
        strict: bool | None = False,
        labels: Tensor | None = None,
        reference: Tensor | None = None,
        **options: Any,
    ) -> None:
        self.num_samples = whole("num_samples", num_samples, least=1)
        self.num_epochs = whole("num_epochs", num_epochs, least=1)
        self.seed = whole("seed", seed)
        self.anneal = fraction("anneal", anneal)
        if nan not in ("raise", "keep"):
            raise ValueError(f"nan: expected 'raise' or 'keep', got {nan!r}")
        self.nan, self.strict = nan, strict
        if isinstance(policy, str):
            self.rule: Policy = policies.make(policy, **options)
            self.policy = policy
        else:
            if options:
                raise ValueError(f"{next(iter(options))}: goes with the name of a policy alone")
            self.rule, self.policy = policy, type(policy).__name__
        self.keep = _share("keep", self.rule.keep if keep is None else keep)
        columns = self.rule.columns or ("loss",)
        for column in columns:
            if column not in COLUMNS:
                raise ValueError(
                    f"policy: {self.policy!r} needs the column {column!r}; the loss gives "
                    f"{', '.join(COLUMNS)}"
                )
        self._options = dict(options)
        self._follows_logits = device is None
        at = _device(device)
        self._labels, self._classes = self._checked_labels(labels, at)
        self._reference, self._reference_sum = self._checked_reference(reference, at)
        with allocating("num_samples", num_samples, at):
            self._columns = {
                name: torch.full((self.num_samples,), COLUMNS[name], dtype=torch.float32, device=at)
                for name in columns
            }
            self._state = self.rule.state(self.num_samples, self.device)
            # As they were when the current epoch was planned: from them, and the policy's state,
            # the plan can be made again.
            self._columns_then = {name: value.clone() for name, value in self._columns.items()}
            self._weights = torch.ones_like(self.scores)
        # Only under torch.distributed: which scores this rank has written since the last sync.
        self._touched: Tensor | None = None
        self._unsynced = False
        self._planned: _Planned | None = None
        self._lazy_plan: LazyPlan | None = None
        self._plan: Tensor | None = None
        # Samples recorded in the current epoch: here since the last sync, and before it by all.
        self._recorded = torch.zeros((), dtype=torch.int64, device=self.device)
        self._recorded_here = self._recorded_by_all = 0
        self._earlier = {"planned": 0, "seen": 0, "full": 0}  # in all epochs before it
        self._has_warned = False
        self.bias: float | None = None

    def _checked_labels(
        self, labels: Tensor | None, device: torch.device
    ) -> tuple[Tensor | None, int]:
        if labels is None:
            if self.rule.needs_labels:
                raise ValueError(f"labels: the policy {self.policy!r} needs them, got None")
            return None, 0
        if labels.shape != (self.num_samples,) or labels.is_floating_point():
            raise ValueError(
                f"labels: expected [{self.num_samples}] integers, got {list(labels.shape)} "
                f"{labels.dtype}"
            )
        least, most = (int(v) for v in labels.aminmax())
        if least < 0:
            raise ValueError(f"labels: expected classes from 0 on, got {least}")
        return labels.to(device, torch.int64), most + 1

    def _checked_reference(
        self, reference: Tensor | None, device: torch.device
    ) -> tuple[Tensor | None, int | None]:
        """With a checksum, for a resume is to have the same."""
        if reference is None:
            return None, None
        if not self.rule.needs_tokens:
            raise ValueError(
                f"reference: the policy {self.policy!r} does not look at tokens, got "
                f"{shown(reference)}"
            )
        if (
            reference.dim() != 2
            or len(reference) != self.num_samples
            or not reference.is_floating_point()
        ):
            raise ValueError(
                f"reference: expected [{self.num_samples}, T] floating, got {shown(reference)}"
            )
        checksum = 0
        for at, rows in enumerate(reference.split(_ROWS)):
            if not bool(rows.isfinite().all()):
                row, token = (~rows.isfinite()).nonzero()[0].tolist()
                raise ValueError(
                    f"reference: expected finite losses, got {float(rows[row, token])} at "
                    f"[{at * _ROWS + row}, {token}]"
                )
            # the bits, for numpy has no bfloat16
            bits = rows.detach().cpu().contiguous().view(torch.uint8)
            checksum = zlib.crc32(bits.numpy().data, checksum)
        return reference.detach().to(device), checksum

    @property
    def planned(self) -> tuple[int, int, bool] | None:
        """The (epoch, repeats, prune) of the current plan; None before the first."""
        return None if self._planned is None else self._planned[:3]

    @property
    def samples_planned(self) -> int:
        """Samples in all epochs planned so far, over all ranks."""
        return self._earlier["planned"] + self._current_length()

    @property
    def samples_seen(self) -> int:
        """Samples whose losses were recorded in training, over all ranks where :meth:`sync` has
        told. Synchronises."""
        return self._earlier["seen"] + self._recorded_at_all()

    @property
    def remaining(self) -> int:
        """Samples of the current plan of which no loss was recorded in training yet, over all ranks
        where :meth:`sync` has told. Synchronises."""
        return max(self._current_length() - self._recorded_at_all(), 0)

    @property
    def samples_saved(self) -> int:
        """Samples that the plans so far have left out."""
        full = 0 if self._planned is None else self._planned.repeats * self.num_samples
        return self._earlier["full"] + full - self.samples_planned

    @property
    def kept(self) -> float:
        """The share of full passes that the current epoch is planned with; 1 before the first."""
        if self._planned is None:
            return 1.0
        return self._current_length() / (self._planned.repeats * self.num_samples)

    @property
    def lr(self) -> float:
        """What the policy multiplies the learning rate by in the current epoch; 1 for most."""
        if self._planned is None or not self._chooses(self._planned):
            return 1.0
        return self.rule.lr(self.kept, self._moment(self._planned))

    @property
    def batch_filter(self) -> BatchFilter | None:
        """The policy's selection within the batches of the current epoch, where it has one."""
        if self._planned is None or not self._chooses(self._planned):
            return None
        return self.rule.batch_filter(self._moment(self._planned), self._planned.keep)

    @property
    def token_filter(self) -> TokenFilter | None:
        """The policy's selection among the tokens of the current epoch's sequences, where it has
        one."""
        if self._planned is None or not self._chooses(self._planned):
            return None
        return self.rule.token_filter(self._moment(self._planned), self._planned.keep)

    @property
    def rescored(self) -> Tensor:
        """The samples that are only to be scored again, by :meth:`score` after the current epoch's
        steps: [m] int64; none for most policies."""
        self._restore_plan()
        if self._lazy_plan is None:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        return self._lazy_plan.rescored

    def is_full(self, epoch: int) -> bool:
        """Whether the policy leaves nothing out in ``epoch`` (from 0)."""
        epoch = whole("epoch", epoch, least=0)
        annealing = epoch >= math.ceil(self.anneal * self.num_epochs)
        return annealing or self.rule.is_full(Moment(epoch, self.num_epochs))

    def plan(
        self,
        epoch: int,
        *,
        repeats: int = 1,
        prune: bool = True,
        keep: float | None = None,
        period_end: int | None = None,
    ) -> Tensor:
        """The indices of epoch ``epoch`` (from 0), in random order: [n] int64 on the device.

        Asking again for the current epoch returns the same tensor. Another epoch becomes the
        current one: its weights replace those of the last.

        Args:
            epoch: counts from 0.
            repeats: passes over the data. Each is a selection and a permutation of its own, so
                that no batch within a pass holds a sample twice.
            prune: False plans full passes with weights 1, whatever the policy says.
            keep: share that is kept in this epoch; None: that of the pruner.
            period_end: epochs completed when the critical period ended, for policies that ask.

        Raises:
            ValueError: for numbers out of range, or NaN among scores that choose the samples.
            RuntimeError: where scores were recorded under torch.distributed and not synced; with
                ``strict``, where another number was recorded than planned.
        """
        asked = self._asked(epoch, repeats, prune, keep, period_end)
        plan = self._prepare("plan", asked)
        if self._plan is None:
            self._plan = plan.batch(0, len(plan))
        return self._plan

    def prepare(
        self,
        epoch: int,
        *,
        repeats: int = 1,
        prune: bool = True,
        keep: float | None = None,
        period_end: int | None = None,
    ) -> LazyPlan:
        """As :meth:`plan`, but the order is computed batch by batch, and stored nowhere.

        Each batch is ``prepare(epoch).batch(start, batch_size)``, for ``start`` below the plan's
        length in steps of the batch size.
        """
        return self._prepare("prepare", self._asked(epoch, repeats, prune, keep, period_end))

    def planned_length(self, epoch: int, **options: Any) -> int:
        """``len(plan(epoch, ...))`` as of now, without making that epoch the current one.

        Args:
            options: those of :meth:`plan`.
        """
        asked = self._asked(**{**_ASKED, **options, "epoch": epoch})
        if asked == self._planned:
            return self._current_length()
        self._require_synced(f"planned_length({asked.epoch})")
        with torch.no_grad():
            return len(self._propose(asked)[0].plan)

    def _asked(
        self, epoch: int, repeats: int, prune: bool, keep: float | None, period_end: int | None
    ) -> _Planned:
        share = self.keep if keep is None else _share("keep", keep)
        end = None if period_end is None else whole("period_end", period_end)
        return _Planned(
            whole("epoch", epoch, least=0),
            whole("repeats", repeats, least=1, most=_MOST_REPEATS),
            bool(prune),
            share,
            end,
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _prepare(self, caller: str, asked: _Planned) -> LazyPlan:
        if self._planned == asked:
            if self._lazy_plan is None:  # restored, or moved to another device
                chosen = self._select(asked, self._samples(self._columns_then, self._state))
                self._lazy_plan, self._weights, self.bias = chosen.plan, chosen.weights, chosen.bias
            return self._lazy_plan
        self._require_synced(f"{caller}({asked.epoch})")
        # Aside, so that an error leaves the current plan and its weights as they are.
        (plan, weights, bias, recorded), samples = self._propose(asked)
        last = self._planned
        if last is not None and last.epoch != asked.epoch:
            self._compare(last, self._current_length(), recorded)
            self._earlier["planned"] += self._current_length()
            self._earlier["seen"] += recorded
            self._earlier["full"] += last.repeats * self.num_samples
            self._recorded.zero_()
            self._recorded_here = self._recorded_by_all = 0
        self._columns_then, self._state = dict(samples.columns), dict(samples.state)
        self._weights, self._lazy_plan, self._plan = weights, plan, None
        self._planned, self.bias = asked, bias
        return plan

    def _samples(self, columns: dict[str, Tensor], state: dict[str, Tensor]) -> Samples:
        return Samples(self.num_samples, self.device, columns, state, self._labels, self._classes)

    def _trained(self) -> Tensor:
        """The samples of the current plan."""
        self._restore_plan()
        assert self._lazy_plan is not None
        return self._lazy_plan.batch(0, len(self._lazy_plan))

    def _propose(self, asked: _Planned) -> tuple[_Selected, Samples]:
        """What :meth:`_select` gives, and the samples as they are after the current epoch."""
        columns = {name: value.clone() for name, value in self._columns.items()}
        state = {name: value.clone() for name, value in self._state.items()}
        samples = self._samples(columns, state)
        if state and self._planned is not None and self._planned.epoch != asked.epoch:
            trained = samples.mask(self._trained())
            self.rule.update(samples._replace(trained=trained), self._moment(self._planned))
        return self._select(asked, samples), samples

    def _require_synced(self, before: str) -> None:
        if self._unsynced:
            raise RuntimeError(
                "DataPruner: scores were recorded since the last sync; under torch.distributed "
                f"call sync() on every rank before {before}"
            )

    def _chooses(self, planned: _Planned) -> bool:
        return planned.prune and not self.is_full(planned.epoch)

    def _moment(self, planned: _Planned) -> Moment:
        return Moment(planned.epoch, self.num_epochs, planned.period_end)

    def _select(self, asked: _Planned, samples: Samples) -> _Selected:
        chooses = self._chooses(asked)
        draws = [Draw(self.seed, asked.epoch, stream) for stream in range(asked.repeats)]
        if chooses:
            moment = self._moment(asked)
            passes = [self.rule.select(samples, moment, asked.keep, draw) for draw in draws]
        else:
            passes = [Chosen.everyone(samples)] * asked.repeats
        again = [p.rescored[1] for p in passes if p.rescored is not None]
        is_nan = torch.stack([column.isnan().any() for column in samples.columns.values()]).any()
        biases = [p.bias.double() * _BIAS_UNITS for p in passes if p.bias is not None]
        missed = [bias.nan_to_num(0, 0, 0).long() for bias in biases]
        *counts, has_nan, recorded = torch.stack(
            [*(p.count for p in passes), *again, *missed, is_nan.long(), self._recorded]
        ).tolist()  # the one reading of the device
        if has_nan and chooses and self.nan == "raise":
            _refuse_nan(samples)
        weights = torch.ones_like(self._weights)
        rescored = [torch.empty(0, dtype=torch.int64, device=self.device)]
        counts_again = iter(counts[len(passes) :])  # and after them what the weights miss
        for one, count in zip(passes, counts, strict=False):
            if one.weights is not None:
                weights.index_copy_(0, one.indices[:count], one.weights[:count])
            if one.rescored is not None:
                rescored.append(one.rescored[0][: next(counts_again)])
        shuffled = [
            Shuffled(one.indices, one.count, count if one.take is None else one.take, *draw)
            for one, count, draw in zip(passes, counts, draws, strict=False)
        ]
        plan = LazyPlan(shuffled, torch.cat(rescored).unique() if again else rescored[0])
        bias = sum(counts_again) / len(biases) / _BIAS_UNITS if biases else None
        recorded += self._recorded_here + self._recorded_by_all
        return _Selected(plan, weights, bias, recorded)

    def _compare(self, last: _Planned, planned: int, recorded: int) -> None:
        """What the last epoch delivered with what was planned for it."""
        # equal shares leave out fewer samples than there are ranks
        if 0 <= planned - recorded < world_size():
            return
        if self.strict is None or (self._has_warned and not self.strict):
            return
        if recorded == 0 and not self.rule.columns:  # nobody needs to record
            return
        message = (
            f"DataPruner: epoch {last.epoch} planned {planned} samples, and the losses of "
            f"{recorded} were recorded. {_CAUSES}"
        )
        if self.strict:
            raise RuntimeError(message)
        self._has_warned = True
        warnings.warn(message, stacklevel=6)  # of plan(): two are torch's decorators

    def _current_length(self) -> int:
        if self._planned is None:
            return 0
        return len(self._prepare("plan", self._planned))

    def _restore_plan(self) -> None:
        if self._lazy_plan is None and self._planned is not None:
            self._prepare("plan", self._planned)

    def _move_to(self, device: torch.device) -> None:
        if device == self.device:
            return
        if not self._follows_logits:
            raise RuntimeError(
                f"logits: on {device}, but the pruner was made with device={str(self.device)!r}; "
                "make it with the device of the model"
            )
        for kept in (self._columns, self._columns_then, self._state):
            for name, value in kept.items():
                kept[name] = value.to(device)
        self._weights = self._weights.to(device)
        self._labels = None if self._labels is None else self._labels.to(device)
        self._reference = None if self._reference is None else self._reference.to(device)
        self._recorded = self._recorded.to(device)
        self._touched = None if self._touched is None else self._touched.to(device)
        self._lazy_plan = self._plan = None  # made again from what was known then

    def state_dict(self) -> dict[str, Any]:
        """Settings, what is recorded of the samples, and from what the current epoch was planned:
        numbers, strings and tensors, of the same names and shapes at every moment.

        Raises:
            RuntimeError: where scores were recorded under torch.distributed and not synced: each
                rank would save other scores.
        """
        self._require_synced("state_dict()")
        planned = self._planned or _Planned(-1, 1, False, self.keep, None)
        tables = {
            "columns": self._columns,
            "state": self._state,
            "columns_then": self._columns_then,
        }
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            "policy": self.policy,
            "options": dict(self._options),
            **{
                key: {name: value.clone() for name, value in table.items()}
                for key, table in tables.items()
            },
            "planned": {
                **planned._asdict(),
                "period_end": -1 if planned.period_end is None else planned.period_end,
            },
            "recorded": self._recorded_at_all(),
            "earlier": dict(self._earlier),
            **({} if self._reference_sum is None else {"reference": self._reference_sum}),
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, the settings included, on this pruner's device.

        Raises:
            ValueError: where the state is not that of a pruner of a data set of this size, with
                this reference; nothing is changed then.
        """
        check(state, _STATE, "state_dict")
        if state["num_samples"] != self.num_samples:
            raise ValueError(
                f"state_dict['num_samples']: expected {self.num_samples}, "
                f"got {state['num_samples']}"
            )
        if state.get("reference") != self._reference_sum:
            raise ValueError(
                "state_dict['reference']: expected the checksum of this pruner's reference, "
                f"{self._reference_sum}, got {state.get('reference')}"
            )
        is_own = (state["policy"], state["options"]) == (self.policy, self._options)
        try:
            restored = DataPruner(
                **{name: state[name] for name in _SETTINGS},
                policy=self.rule if is_own else state["policy"],
                device=self.device,
                nan=self.nan,
                strict=self.strict,
                labels=self._labels,
                reference=self._reference,
                **({} if is_own else state["options"]),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"state_dict: {error}") from error
        restored.policy, restored._options = state["policy"], dict(state["options"])
        for key in ("columns", "state", "columns_then"):
            own = getattr(restored, f"_{key}")
            check(state[key], own, f"state_dict[{key!r}]")
            for name, value in own.items():
                value.copy_(state[key][name])
        planned = _Planned(**state["planned"])
        if planned.epoch >= 0:
            end = planned.period_end
            asked = planned._replace(period_end=None if end == -1 else end)
            try:
                restored._planned = restored._asked(*asked)
            except ValueError as error:
                raise ValueError(f"state_dict['planned']: {error}") from error
        restored._recorded_by_all = state["recorded"]
        restored._earlier = dict(state["earlier"])
        restored._follows_logits = self._follows_logits
        self.__dict__.update(restored.__dict__)


def _refuse_nan(samples: Samples) -> None:
    for name, column in samples.columns.items():
        nans = column.isnan().nonzero()[:, 0].tolist()
        if nans:
            raise ValueError(
                f"scores: {len(nans)} of {samples.size} are NaN, the first is the {name} of "
                f"sample {nans[0]}, which has diverged; nan='keep' trains on it again"
            )


def _device(device: torch.device | str | None) -> torch.device:
    try:
        return torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"device: expected one of torch's, got {device!r}") from error


def _share(name: str, value: float) -> float:
    share = real(name, value)
    if not 0 < share <= 1:
        raise ValueError(f"{name}: expected a share in (0, 1], got {value}")
    return share
