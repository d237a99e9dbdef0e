"""Samples that carry their index, and a sampler that follows a :class:`~cpfast.DataPruner`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, IterableDataset

from cpfast.arguments import typed
from cpfast.detection import CriticalPeriodDetector
from cpfast.forms import Open, check
from cpfast.moment import Moment
from cpfast.pruning import DataPruner
from cpfast.recipes import Recipe

__all__ = ["IndexedDataset", "PrunedSampler"]


class IndexedDataset(Dataset):
    """Wraps a map-style data set so that item ``i`` is ``(dataset[i], i)``.

    The index travels with its sample, so that workers, prefetching and wrappers of the loader
    cannot mix them up: ``for (x, y), index in loader``.

    Raises:
        TypeError: for an iterable-style data set, whose samples have no index.
    """

    def __init__(self, dataset: Dataset) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"dataset: expected a map-style data set, got {type(dataset).__name__}, whose "
                "samples have no index"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index], index

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        # Data sets that fetch whole batches keep that speed.
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(indices) if fetch else [self.dataset[i] for i in indices]
        return list(zip(items, indices, strict=True))


_STATE = Open({"epoch": int, "position": int, "finished": bool})


class _Settings(NamedTuple):
    """What the pruner is asked for."""

    epoch: int
    repeats: int = 1
    prune: bool = True
    keep: float | None = None
    period_end: int | None = None

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "epoch"}


class PrunedSampler(DistributedSampler):
    """Yields the indices of the pruner's plan, this rank's share of them.

    Call ``set_epoch(epoch)`` before each epoch, as for any DistributedSampler (which it is, so
    that Lightning leaves it as it stands). What else the epoch is planned with follows from the
    recipe and the detector; so whoever calls ``set_epoch`` need not know of them. Before the first
    ``set_epoch`` it stands where the pruner does.

    Ranks take turns through the plan: together they see each planned sample once and none twice;
    their shares differ by at most one sample. Where one step more on a rank would hang the others
    (a synchronised backward pass), ``drop_last=True`` makes the shares equal by leaving out fewer
    samples than there are ranks.

    Args:
        pruner: plans the epochs; under torch.distributed, call its ``sync()`` once an epoch.
        num_replicas, rank: None: those of torch.distributed when the sampler is used.
        recipe: its settings of the epoch are what is planned.
        detector: tells the recipe when the period has ended.
        drop_last: equal shares.
        shard: "auto", or "never" where somebody else gives each rank its share of what this
            yields.
        dataset: the loader's, whose size is compared with the pruner's.

    Attributes:
        told: functions that are given each epoch that is chosen, for loaders that count epochs by
            themselves.
        held: whether another epoch than the one that is chosen is passed over, as that of a loader
            which counts by itself; a :class:`~cpfast.integrations.course.Course` holds the epoch
            that it is in.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a data set of another size than the pruner's, a detector without a recipe,
            or a wrong ``shard`` or rank.
        RuntimeError: when it is used in one of several processes (WORLD_SIZE) before they have
            found each other: each would see everything.
    """

    @typed
    def __init__(
        self,
        pruner: DataPruner,
        num_replicas: int | None = None,
        rank: int | None = None,
        *,
        recipe: Recipe | None = None,
        detector: CriticalPeriodDetector | None = None,
        drop_last: bool = False,
        shard: str = "auto",
        dataset: Sized | None = None,
    ) -> None:
        if shard not in ("auto", "never"):
            raise ValueError(f"shard: expected 'auto' or 'never', got {shard!r}")
        if shard == "never" and (num_replicas, rank) != (None, None):
            raise ValueError(
                "shard: 'never' leaves nothing to num_replicas and rank, got "
                f"{num_replicas}, {rank}"
            )
        if detector is not None and recipe is None:
            raise ValueError("detector: has no effect without a recipe")
        if dataset is not None and len(dataset) != pruner.num_samples:
            raise ValueError(
                f"dataset: has {len(dataset)} samples, and the pruner was made for "
                f"{pruner.num_samples}"
            )
        # Not by the parent's __init__, which asks for the ranks at once: trainers make samplers
        # before the processes have found each other.
        self.dataset = range(pruner.num_samples)  # type: ignore[assignment]
        self.pruner = pruner
        self.recipe = recipe
        self.detector = detector
        self.drop_last = drop_last
        self.shard = shard
        self.shuffle, self.seed, self.epoch = True, pruner.seed, 0
        self._replicas, self._rank = num_replicas, rank
        self._chosen: _Settings | None = None
        self._position = 0  # of this rank, in the current epoch
        self._resumed_at = 0  # where the next iteration begins
        self._finished = False
        self.told: list[Callable[[int], None]] = []
        self.held = False
        if num_replicas is not None or rank is not None:
            self._ranks()

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        return self._ranks()[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self._ranks()[1]

    def _ranks(self) -> tuple[int, int]:
        if self.shard == "never":
            return 1, 0
        replicas, rank = self._replicas, self._rank
        if replicas is None or rank is None:
            if dist.is_available() and dist.is_initialized():
                replicas = dist.get_world_size() if replicas is None else replicas
                rank = dist.get_rank() if rank is None else rank
            elif (world := int(os.environ.get("WORLD_SIZE", "1") or 1)) > 1:
                raise RuntimeError(
                    f"PrunedSampler: one of {world} processes (WORLD_SIZE), but torch.distributed "
                    "has no process group, so each would see all samples: call "
                    "torch.distributed.init_process_group() first, give num_replicas and rank, or "
                    "shard='never' where the trainer shards"
                )
        replicas, rank = replicas or 1, rank or 0
        if not 0 <= rank < replicas:
            raise ValueError(f"rank: expected one of 0..{replicas - 1}, got {rank}")
        return replicas, rank

    @typed
    def set_epoch(
        self, epoch: int, *, repeats: int | None = None, prune: bool | None = None
    ) -> None:
        """Chooses the epoch (from 0), and what :meth:`DataPruner.plan` takes besides.

        Args:
            repeats, prune: None: what they were, if the epoch is chosen already; else as the
                recipe has them, without one 1 and True.
        """
        current = self._chosen
        if self.held and current is not None and current.epoch != epoch:
            return
        self.epoch = epoch
        if current is None or current.epoch != epoch:
            chosen = self._from_recipe(epoch)
            self._position, self._resumed_at, self._finished = 0, 0, False
        else:
            chosen = current
        if repeats is not None:
            chosen = chosen._replace(repeats=repeats)
        if prune is not None:
            chosen = chosen._replace(prune=prune)
        if chosen != current:
            self._position, self._resumed_at, self._finished = 0, 0, False
        self._chosen = chosen
        for tell in self.told:
            tell(epoch)

    @typed
    def follow(self, recipe: Recipe | None, detector: CriticalPeriodDetector | None) -> None:
        """Plans by these from now on, the epoch that is chosen too."""
        if (recipe, detector) != (self.recipe, self.detector):
            self.recipe, self.detector = recipe, detector
            self._chosen = None

    def _from_recipe(self, epoch: int) -> _Settings:
        if self.recipe is None:
            return _Settings(epoch)
        end = None if self.detector is None else self.detector.end_epoch
        settings = self.recipe.settings(Moment(epoch, self.recipe.total_epochs, end))
        return _Settings(epoch, settings.repeats, settings.prune, settings.keep, end)

    def _current(self) -> _Settings:
        if self._chosen is None:
            # After a resume, the pruner is in the middle of an epoch.
            planned = self.pruner.planned
            if planned is None or self.recipe is not None:
                self._chosen = self._from_recipe(0 if planned is None else planned[0])
            else:
                return _Settings(*planned)
        return self._chosen

    def _share(self, planned: int) -> int:
        replicas, rank = self._ranks()
        share, rest = divmod(planned, replicas)
        return share if self.drop_last else share + (rank < rest)

    def __len__(self) -> int:
        """This rank's number of samples in the current epoch, which it does not plan yet: before
        that is planned, more scores can still change it."""
        epoch, *_ = current = self._current()
        return self._share(self.pruner.planned_length(epoch, **current.options()))

    def plan(self) -> Tensor:
        """The current epoch's samples of all ranks, [n] int64: from now on the pruner's plan."""
        epoch, *_ = current = self._current()
        return self.pruner.plan(epoch, **current.options())

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        return len(self)

    @property
    def total_size(self) -> int:  # type: ignore[override]
        return len(self) * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        epoch, *_ = current = self._current()
        replicas, rank = self._ranks()
        if self._finished:
            warnings.warn(
                f"PrunedSampler: epoch {epoch} is iterated again, with the same samples; call "
                "set_epoch(epoch) before each epoch",
                stacklevel=2,
            )
        plan = self.pruner.plan(epoch, **current.options())
        own = plan[rank::replicas][: self._share(len(plan))].tolist()
        return self._yield_from(own, current)

    def _yield_from(self, own: list[int], current: _Settings) -> Iterator[int]:
        begin = 0 if self._finished else min(self._resumed_at, len(own))
        self._position, self._resumed_at, self._finished = begin, 0, False
        for position in range(begin, len(own)):
            if self._current() == current:
                self._position = position + 1
                self._finished = position + 1 == len(own)
            yield own[position]

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the position of this rank in it, and whether it has ended; of the samples
        that were asked for, which workers do ahead of the training."""
        return {
            "epoch": self._current().epoch,
            "position": self._position,
            "finished": self._finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; load the pruner's and the detector's first. The next
        iteration begins where this one stood; of an epoch that has ended, at its beginning.

        Raises:
            ValueError: where something is missing, of another type or out of range; nothing is
                changed then.
        """
        check(state, _STATE, "state_dict")
        epoch, position = state["epoch"], state["position"]
        for name, value in (("epoch", epoch), ("position", position)):
            if value < 0:
                raise ValueError(f"state_dict[{name!r}]: expected 0 or more, got {value}")
        try:
            self._from_recipe(epoch)
        except ValueError as error:
            raise ValueError(f"state_dict['epoch']: {error}") from error
        self._chosen = None
        planned = self.pruner.planned
        self.set_epoch(epoch)
        if self.recipe is None and planned is not None and planned[0] == epoch:
            self.set_epoch(planned[0], repeats=planned[1], prune=planned[2])
        self._position = self._resumed_at = position
        self._finished = state["finished"]
