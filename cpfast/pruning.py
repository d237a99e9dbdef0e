"""Dynamic data pruning: which samples an epoch trains on, and how their losses are weighted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpfast import ops

__all__ = ["POLICIES", "DataPruner", "LazyPlan"]

POLICIES = ("infobatch", "random")
_SETTINGS = ("num_samples", "num_epochs", "policy", "keep", "anneal", "seed")
_STATE = (*_SETTINGS, "scores", "weights", "plan", "planned", "counts")
_UNSEEN = math.inf
# An ignored sample would be recorded as one of loss 0.
_NONE_IGNORED = torch.iinfo(torch.int64).min


class LazyPlan:
    """The indices of an epoch in random order, computed a batch at a time.

    :meth:`DataPruner.prepare` makes it, and it stays what it is while scores change and other
    epochs are planned. ``len(plan)`` is the number of samples in the epoch.

    Args:
        passes: of each pass over the data, its length and a function that computes the indices at
            positions [start, start + size).
    """

    def __init__(self, passes: list[tuple[int, Callable[[int, int], Tensor]]]) -> None:
        self._passes = passes

    def __len__(self) -> int:
        return sum(length for length, _ in self._passes)

    def batch(self, start: int, size: int) -> Tensor:
        """``plan(epoch)[start : start + size]``: [size] int64 on the device, fewer at the end.

        Raises:
            ValueError: for a negative number.
        """
        for name, value in (("start", start), ("size", size)):
            if value < 0:
                raise ValueError(f"{name}: expected a number from 0 on, got {value}")
        slices, first = [], 0
        for length, slice_of in self._passes:
            begin, end = max(start, first), min(start + size, first + length)
            if begin < end:
                slices.append(slice_of(begin - first, end - begin))
            first += length
        if not slices:  # past the end
            return self._passes[0][1](0, 0)
        return slices[0] if len(slices) == 1 else torch.cat(slices)


class DataPruner:
    """Keeps a score for each sample, and plans each epoch from them.

    Policies:
        ``"infobatch"`` (arXiv 2303.04947): the score is the sample's last loss. Epoch 0 is full.
        Then, of the samples that score below the mean, a random floor(keep * their number) are
        kept, with weight 1 / keep; all others are kept with weight 1.

        ``"random"`` (arXiv 2305.18424): floor(keep * N) fresh random samples an epoch (at least
        one), weight 1.

    Under both, epochs from ceil(anneal * num_epochs) on are full, with weights 1 (InfoBatch's own
    code takes the floor). ``anneal=1`` prunes to the end.

    The plan is a function of the scores, the seed and the epoch: after :meth:`sync` it is the same
    on every rank, and resuming needs no generator's state. Scores live on one device and never
    visit the host; :meth:`prepare` and :meth:`plan` read a few integers once an epoch.

    Args:
        num_samples: N, the size of the data set.
        num_epochs: length of the training in epochs, for ``anneal``.
        policy: one of the names above.
        keep: share that is kept, in (0, 1].
        anneal: fraction of the training after which epochs are full, in [0, 1].
        seed: of all random choices.
        device: where the scores live; None: the CPU, until the first logits come, then theirs.

    Attributes:
        scores: [N] float32; inf where a sample has not been seen.

    Raises:
        ValueError: for an unknown policy, or numbers out of range.
    """

    def __init__(
        self,
        num_samples: int,
        num_epochs: int = 200,
        policy: str = "infobatch",
        keep: float = 0.5,
        anneal: float = 0.875,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed: expected an integer of 64 bits, got {seed}")
        for name, value in (("num_samples", num_samples), ("num_epochs", num_epochs)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if policy not in POLICIES:
            raise ValueError(f"policy: expected one of {POLICIES}, got {policy!r}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep: expected a share in (0, 1], got {keep}")
        if not 0 <= anneal <= 1:
            raise ValueError(f"anneal: expected a fraction in [0, 1], got {anneal}")
        self.num_samples = num_samples
        self.num_epochs = num_epochs
        self.policy = policy
        self.keep = keep
        self.anneal = anneal
        self.seed = seed
        self._follows_logits = device is None
        self.scores = torch.full(
            (num_samples,), _UNSEEN, dtype=torch.float32, device=device or "cpu"
        )
        self._weights = torch.ones_like(self.scores)
        # Only under torch.distributed: which scores this rank has written since the last sync.
        self._touched: Tensor | None = None
        self._unsynced = False
        self._lazy_plan: LazyPlan | None = None
        self._plan: Tensor | None = None
        self._planned: tuple[int, int, bool] | None = None
        # Per epoch: how many samples its plan has, and how many full passes would have.
        self._counts: dict[int, tuple[int, int]] = {}

    @property
    def device(self) -> torch.device:
        return self.scores.device

    @property
    def planned(self) -> tuple[int, int, bool] | None:
        """The (epoch, repeats, prune) of the current plan; None before the first."""
        return self._planned

    @property
    def samples_seen(self) -> int:
        """Samples in all epochs planned so far, over all ranks."""
        return sum(planned for planned, _ in self._counts.values())

    @property
    def samples_saved(self) -> int:
        """Samples that those epochs left out."""
        return sum(full - planned for planned, full in self._counts.values())

    def is_full(self, epoch: int) -> bool:
        """Whether the policy leaves nothing out in ``epoch`` (from 0)."""
        annealing = epoch >= math.ceil(self.anneal * self.num_epochs)
        return annealing or (self.policy == "infobatch" and epoch == 0)

    def plan(self, epoch: int, *, repeats: int = 1, prune: bool = True) -> Tensor:
        """The indices of epoch ``epoch`` (from 0), in random order: [n] int64 on the device.

        Asking again for the current epoch returns the same tensor. Another epoch becomes the
        current one: its weights replace those of the last.

        Args:
            epoch: counts from 0.
            repeats: passes over the data. Each is a selection and a permutation of its own, so
                that no batch within a pass holds a sample twice.
            prune: False plans full passes with weights 1, whatever the policy says.

        Raises:
            ValueError: for numbers out of range, or NaN among scores that choose the samples.
            RuntimeError: where scores were recorded under torch.distributed and not synced.
        """
        plan = self._prepare("plan", epoch, repeats, prune)
        if self._plan is None:
            self._plan = plan.batch(0, len(plan))
        return self._plan

    def prepare(self, epoch: int, *, repeats: int = 1, prune: bool = True) -> LazyPlan:
        """As :meth:`plan`, but the order is computed batch by batch, and stored nowhere.

        Each batch is ``prepare(epoch).batch(start, batch_size)``, for ``start`` below the plan's
        length in steps of the batch size.
        """
        return self._prepare("prepare", epoch, repeats, prune)

    @torch.no_grad()
    def _prepare(self, caller: str, epoch: int, repeats: int, prune: bool) -> LazyPlan:
        if epoch < 0:
            raise ValueError(f"epoch: expected one from 0 on, got {epoch}")
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        if self._planned == (epoch, repeats, prune) and self._lazy_plan is not None:
            return self._lazy_plan
        self._require_synced(f"{caller}({epoch})")
        # Aside, so that an error leaves the current plan and its weights as they are.
        plan, weights = self._select(epoch, repeats, prune and not self.is_full(epoch))
        self._weights = weights
        self._lazy_plan, self._plan = plan, None
        self._planned = (epoch, repeats, prune)
        self._counts[epoch] = (len(plan), repeats * self.num_samples)
        return plan

    def _require_synced(self, before: str) -> None:
        if self._unsynced:
            raise RuntimeError(
                "DataPruner: scores were recorded since the last sync; under torch.distributed "
                f"call sync() on every rank before {before}"
            )

    def _select(self, epoch: int, repeats: int, pruned: bool) -> tuple[LazyPlan, Tensor]:
        """The passes of an epoch, and the weights of all samples."""
        by_score = pruned and self.policy == "infobatch"
        # Equal scores are below no mean: everything is kept.
        scores = self.scores if by_score else torch.zeros_like(self.scores)
        selections = [
            ops.select_samples(scores, keep=self.keep, seed=self.seed, epoch=epoch, stream=stream)
            for stream in range(repeats if by_score else 1)
        ]
        weights = torch.ones_like(self._weights)
        if by_score:
            *counts, has_nan = torch.stack(
                [*(s.count for s in selections), scores.amax().isnan().long()]
            ).tolist()
            if has_nan:
                self._refuse_nan()
            for s, count in zip(selections, counts, strict=True):
                weights.index_copy_(0, s.indices[:count], s.weights[:count])
        else:
            # All passes shuffle the same selection, and the first positions of a random order are
            # a random subset.
            share = max(1, math.floor(self.keep * self.num_samples))
            selections, counts = selections * repeats, [share if pruned else self.num_samples]
            counts *= repeats

        def slices(stream: int) -> Callable[[int, int], Tensor]:
            indices, _, count = selections[stream]
            return lambda start, size: ops.shuffled_slice(
                indices, count, start, size, seed=self.seed, epoch=epoch, stream=stream
            )

        return LazyPlan([(n, slices(stream)) for stream, n in enumerate(counts)]), weights

    def _refuse_nan(self) -> None:
        nans = self.scores.isnan().nonzero()[:, 0].tolist()
        raise ValueError(
            f"scores: {len(nans)} of {self.num_samples} are NaN, the first is that of sample "
            f"{nans[0]}: its loss has diverged"
        )

    def _written_plan(self) -> Tensor | None:
        if self._plan is None and self._lazy_plan is not None:
            self._plan = self._lazy_plan.batch(0, len(self._lazy_plan))
        return self._plan

    def _adopt(self, plan: Tensor) -> None:
        self._plan = plan
        self._lazy_plan = LazyPlan([(len(plan), lambda start, size: plan[start : start + size])])

    def weights(self, index: Tensor) -> Tensor:
        """What the losses of samples ``index`` ([B] int64) are multiplied by: [B] float32."""
        return self._weights[index.to(self.device, non_blocking=True)]

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> Tensor:
        """Cross-entropy, weighted, averaged over the batch; records the samples' losses.

        It is for training: under no_grad too it records, and evaluation would overwrite scores.
        The gradient is computed with the loss (not for float16 logits, whose loss scale would
        come too late), so there can be one backward pass.

        Args:
            logits: [B, C], or [B, T, C] for sequences of tokens.
            target: [B] int64, each a class, none is ignored; or [B, T].
            index: [B] int64, which samples of the data set these are.
            weight: [B] float32; None: ``weights(index)``, of the current plan. For batches that
                hold samples of an earlier plan too.
            label_smoothing: in [0, 1].
            ignore_index: of tokens. A sequence's score is the mean over the others.

        Returns:
            [] float32 (float64 for float64 logits), the sum of weight * loss over B, or over the
            tokens that are not ignored. Summed over an epoch, and times B, it estimates the sum
            over the full data: with n of N samples planned, a batch's value is some N / n times
            the full mean, as InfoBatch's is.
        """
        if index.shape != target.shape[:1]:
            raise ValueError(
                f"index: expected shape {tuple(target.shape[:1])} as target, "
                f"got {tuple(index.shape)}"
            )
        self._move_to(logits.device)
        index = index.to(self.device, non_blocking=True)
        loss = ops.scored_cross_entropy(
            logits,
            target,
            weight=self.weights(index) if weight is None else weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index if logits.dim() == 3 else _NONE_IGNORED,
            reduction="mean",
            gradient="backward" if logits.dtype == torch.float16 else "forward",
            table=self.scores,
            index=index,
        ).loss
        self._touch(index)
        return loss

    @torch.no_grad()
    def update(self, index: Tensor, score: Tensor) -> None:
        """Records scores of the user's own making, such as unweighted losses.

        Of a sample that stands in the batch twice, the later score is kept. NaN is recorded, and
        reported by the next :meth:`plan`.

        Args:
            index: [B] int64 in [0, N).
            score: [B] floating.
        """
        index = index.to(self.device, non_blocking=True)
        ops.record_scores(self.scores, index, score.to(self.device))
        self._touch(index)

    def _touch(self, index: Tensor) -> None:
        if _world_size() > 1:
            if self._touched is None:
                self._touched = torch.zeros_like(self.scores, dtype=torch.bool)
            self._touched[index] = True
            self._unsynced = True

    @torch.no_grad()
    def sync(self) -> None:
        """Merges the scores of all ranks, in one collective; call it once an epoch on each rank.

        A sample that several ranks have scored gets the mean. Does nothing outside
        torch.distributed.
        """
        if _world_size() > 1:
            if self._touched is None:
                self._touched = torch.zeros_like(self.scores, dtype=torch.bool)
            merged = torch.stack(
                [torch.where(self._touched, self.scores, 0.0), self._touched.float()]
            )
            dist.all_reduce(merged)
            total, ranks = merged
            self.scores = torch.where(ranks > 0, total / ranks, self.scores)
            self._touched.zero_()
        self._unsynced = False

    def _move_to(self, device: torch.device) -> None:
        if device == self.device:
            return
        if not self._follows_logits:
            raise RuntimeError(
                f"logits: on {device}, but the pruner was made with device={str(self.device)!r}; "
                "make it with the device of the model"
            )
        self.scores = self.scores.to(device)
        self._weights = self._weights.to(device)
        self._touched = None if self._touched is None else self._touched.to(device)
        plan = self._written_plan()
        if plan is not None:
            self._adopt(plan.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Settings, scores, weights, the plan of the current epoch, and the counts.

        Raises:
            RuntimeError: where scores were recorded under torch.distributed and not synced: each
                rank would save other scores.
        """
        self._require_synced("state_dict()")
        plan = self._written_plan()
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            "scores": self.scores.clone(),
            "weights": self._weights.clone(),
            "plan": None if plan is None else plan.clone(),
            "planned": self._planned,
            "counts": [(epoch, *counts) for epoch, counts in self._counts.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, the settings included, on this pruner's device.

        Raises:
            ValueError: where the state is not that of a pruner of a data set of this size; nothing
                is changed then.
        """
        missing = [name for name in _STATE if name not in state]
        if missing:
            raise ValueError(f"state_dict: {missing[0]!r} is missing")
        if state["num_samples"] != self.num_samples:
            raise ValueError(
                f"state_dict['num_samples']: expected {self.num_samples}, "
                f"got {state['num_samples']}"
            )
        restored = DataPruner(**{name: state[name] for name in _SETTINGS}, device=self.device)
        for name, own in (("scores", restored.scores), ("weights", restored._weights)):
            if state[name].shape != own.shape:
                raise ValueError(
                    f"state_dict[{name!r}]: expected shape {list(own.shape)}, "
                    f"got {list(state[name].shape)}"
                )
            own.copy_(state[name])
        plan, planned = state["plan"], state["planned"]
        if plan is not None:
            restored._adopt(plan.to(self.device, copy=True))
        restored._planned = None if planned is None else (planned[0], planned[1], planned[2])
        restored._counts = {epoch: (seen, full) for epoch, seen, full in state["counts"]}
        restored._follows_logits = self._follows_logits
        self.__dict__.update(restored.__dict__)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
