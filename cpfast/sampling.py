"""Samples that carry their index, and a sampler that follows a :class:`~cpfast.DataPruner`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, IterableDataset

from cpfast.pruning import DataPruner

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


class PrunedSampler(DistributedSampler):
    """Yields the indices of the pruner's plan, this rank's share of them.

    Call ``set_epoch(epoch)`` before each epoch, as for any DistributedSampler (which it is, so
    that Lightning leaves it as it stands). It has no state of its own: before the first
    ``set_epoch`` it stands where the pruner does.

    Ranks take turns through the plan: together they see each planned sample once and none twice;
    their shares differ by at most one sample. Where one step more on a rank would hang the others
    (a synchronised backward pass), ``drop_last=True`` makes the shares equal by leaving out fewer
    samples than there are ranks.

    Args:
        pruner: plans the epochs; under torch.distributed, call its ``sync()`` once an epoch.
        num_replicas, rank: those of torch.distributed where it is initialised, else 1 and 0.
        drop_last: equal shares.
    """

    def __init__(
        self,
        pruner: DataPruner,
        num_replicas: int | None = None,
        rank: int | None = None,
        *,
        drop_last: bool = False,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        super().__init__(
            range(pruner.num_samples),  # type: ignore[arg-type]
            num_replicas,
            rank,
            seed=pruner.seed,
            drop_last=drop_last,
        )
        self.pruner = pruner
        self._chosen: tuple[int, int, bool] | None = None
        self._iterated: tuple[int, int, bool] | None = None

    def set_epoch(self, epoch: int, *, repeats: int = 1, prune: bool = True) -> None:
        """Chooses the epoch (from 0), and what :meth:`DataPruner.plan` takes besides."""
        super().set_epoch(epoch)
        self._chosen = (epoch, repeats, prune)
        self._iterated = None

    def _current(self) -> tuple[int, int, bool]:
        # Before the first set_epoch, that of the pruner: after a resume it is in the middle of one.
        return self._chosen or self.pruner.planned or (0, 1, True)

    def _plan(self) -> Tensor:
        epoch, repeats, prune = self._current()
        return self.pruner.plan(epoch, repeats=repeats, prune=prune)

    def __len__(self) -> int:
        """This rank's number of samples in the current epoch."""
        planned = len(self._plan())
        share, rest = divmod(planned, self.num_replicas)
        return share if self.drop_last else share + (self.rank < rest)

    def __iter__(self) -> Iterator[int]:
        if self._iterated == self._current():
            warnings.warn(
                f"PrunedSampler: epoch {self._iterated[0]} is iterated again, with the same "
                "samples; call set_epoch(epoch) before each epoch",
                stacklevel=2,
            )
        self._iterated = self._current()
        return iter(self._plan()[self.rank :: self.num_replicas][: len(self)].tolist())
