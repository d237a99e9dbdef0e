"""A plan cut into batches, as many on each rank, and the loaders that read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from cpfast.arguments import typed, whole
from cpfast.sampling import PrunedSampler

__all__ = ["KEPT", "PlannedBatches", "WithIndex", "part_of", "parts_of", "reads"]

KEPT = (
    "generator", "in_order", "multiprocessing_context", "num_workers", "persistent_workers",
    "pin_memory", "prefetch_factor", "timeout", "worker_init_fn",
)  # fmt: skip
"""What a loader is made of, but its data and the order of them."""


def part_of(size: int, ranks: int, rank: int) -> slice:
    """A rank's run of a batch of all ranks; their sizes differ by one at most."""
    return slice(size * rank // ranks, size * (rank + 1) // ranks)


class PlannedBatches(Sampler[list[int]]):
    """The batches of this rank, of what a sampler plans for all: as many on each rank.

    With G = ``batch_size`` x ranks, batch g of all ranks together is samples g G to (g + 1) G of
    the plan: the batches that one process would make of it with a batch size of G. Each rank takes
    a run of it, the first rank the first. The last batch has what is left over, and its runs may
    differ by one sample; where that is fewer samples than there are ranks, they join the batch
    before. So all ranks together see each planned sample once, and make equally many steps: what
    synchronises them in each step (DistributedDataParallel, FSDP) waits for nobody. In a last
    batch of uneven runs, which these average as if they were even, the samples of the shorter runs
    weigh more, by one part in the runs' length.

    Args:
        source: made with ``shard="never"``; its epoch is the one that is iterated.
        batch_size: of each rank.
        drop_last: leaves out the last batch where it is not of G samples.
        num_replicas, rank: None: those of torch.distributed when the batches are used.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for a sampler that gives each rank a share, or a batch size below 1.
        RuntimeError: when used: of an epoch in which a rank would have no batch; in one of several
            processes (WORLD_SIZE) that have not found each other.
    """

    @typed
    def __init__(
        self,
        source: PrunedSampler,
        batch_size: int,
        *,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if source.shard != "never":
            raise ValueError(
                f"source: shards (shard={source.shard!r}), as these batches do; make the sampler "
                "with shard='never'"
            )
        self.source = source
        self.batch_size = whole("batch_size", batch_size, least=1)
        self.drop_last = drop_last
        self._replicas, self._rank = num_replicas, rank

    @property
    def num_processes(self) -> int:
        if self._replicas is not None:
            return self._replicas
        if dist.is_available() and dist.is_initialized():
            return dist.get_world_size()
        if (world := int(os.environ.get("WORLD_SIZE", "1") or 1)) > 1:
            raise RuntimeError(
                f"PlannedBatches: one of {world} processes (WORLD_SIZE), but torch.distributed has "
                "no process group, so each would see all samples: call "
                "torch.distributed.init_process_group() first, or give num_replicas and rank"
            )
        return 1

    @property
    def rank(self) -> int:
        if self._rank is not None:
            return self._rank
        return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

    def _ends(self, planned: int) -> list[int]:
        """Where each batch of all ranks ends in the plan."""
        ranks = self.num_processes
        size = self.batch_size * ranks
        ends = list(range(size, planned + 1, size))
        rest = planned % size
        if rest and not self.drop_last:
            if ends and rest < ranks:
                ends[-1] = planned
            else:
                ends.append(planned)
        if not ends or planned < ranks:
            cause = (
                f"of which drop_last leaves none: a batch is of {size}"
                if planned >= ranks
                else f"fewer than the {ranks} processes"
            )
            raise RuntimeError(f"epoch {self.source.epoch}: {planned} samples are planned, {cause}")
        return ends

    def __len__(self) -> int:
        """Of the sampler's current epoch."""
        return len(self._ends(len(self.source)))

    def _own(self, batch: list[int]) -> list[int]:
        return batch[part_of(len(batch), self.num_processes, self.rank)]

    def _plan(self) -> list[int]:
        return list(self.source)

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._plan()
        begin = 0
        for end in self._ends(len(plan)):
            yield self._own(plan[begin:end])
            begin = end


class WithIndex:
    """Collates (sample, index) pairs: the samples as a loader would, and the indices, [B] int64."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, pairs: Sequence[tuple[Any, int]]) -> tuple[Any, Tensor]:
        samples, index = zip(*pairs, strict=True)
        return self.collate_fn(list(samples)), torch.tensor(index)


def parts_of(loader: DataLoader) -> tuple[Any, int, bool]:
    """The sampler, the batch size and drop_last of a loader that can be made again of other
    batches.

    Raises:
        TypeError: not of torch's own class, whose further parts would be lost.
        ValueError: its batches are not those of a sampler, one after the other.
    """
    if type(loader) is not DataLoader:
        raise TypeError(
            f"loader: expected a torch.utils.data.DataLoader, got a {type(loader).__name__}"
        )
    batches = loader.batch_sampler
    if isinstance(batches, PlannedBatches):
        return batches.source, batches.batch_size, batches.drop_last
    if type(batches) is not BatchSampler:
        given = "none" if batches is None else f"those of a {type(batches).__name__}"
        raise ValueError(
            f"loader: expected batches that are made by batch_size and a sampler, got {given}"
        )
    return batches.sampler, batches.batch_size, batches.drop_last


def reads(
    loader: DataLoader,
    batches: Sampler[list[int]],
    dataset: Dataset | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """A loader of the same workers and options, that reads these batches.

    Args:
        dataset, collate_fn: None: the loader's own.
    """
    return DataLoader(
        loader.dataset if dataset is None else dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn if collate_fn is None else collate_fn,
        **{name: getattr(loader, name) for name in KEPT},
    )
