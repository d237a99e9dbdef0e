"""cpfast with Accelerate, written for its version 1.15."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from cpfast.integrations import plain
from cpfast.integrations.batches import PlannedBatches, part_of, parts_of, reads
from cpfast.integrations.course import Course
from cpfast.sampling import PrunedSampler

try:
    import accelerate
    from accelerate import Accelerator, DistributedType
    from accelerate.data_loader import prepare_data_loader
    from accelerate.state import GradientState
    from accelerate.utils import find_batch_size, slice_tensors
except ImportError as error:
    raise ImportError(
        f"cpfast.integrations.accelerate: {error}; pip install 'cpfast[accelerate]'"
    ) from error

__all__ = ["prepare", "prepare_loader"]


def prepare(
    accelerator: Accelerator, loader: DataLoader, epochs: int, **options: Any
) -> tuple[Course, DataLoader]:
    """What a training by a recipe needs, registered for checkpointing, and the prepared loader that
    follows it. ::

        course, loader = prepare(accelerator, loader, epochs=30)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for epoch in course.epochs(model, optimizer):
            for (inputs, target), index in loader:
                accelerator.backward(course.pruner.loss(model(inputs), target, index))

    ``accelerator.save_state`` then saves the course, which merges the scores of all processes, so
    all have to call it; ``accelerator.load_state`` comes before the loop over the epochs.

    Args:
        loader: shuffles a map-style data set; not prepared yet.
        epochs: length of the training.
        options: those of :func:`cpfast.integrations.plain.prepare`.

    Raises:
        TypeError, ValueError: what that function and :func:`prepare_loader` refuse.
    """
    _refuse_prepared(loader)
    course, loader = plain.prepare(loader, epochs, **options)
    loader = prepare_loader(accelerator, loader)
    accelerator.register_for_checkpointing(course)
    return course, loader


def prepare_loader(accelerator: Accelerator, loader: DataLoader) -> DataLoader:
    """In place of ``accelerator.prepare(loader)``, which leaves what it returns as it is.

    Of a loader with a :class:`~cpfast.PrunedSampler`. All processes together see each planned
    sample once, in the batches that :class:`~cpfast.integrations.batches.PlannedBatches` says, of
    the loader's batch size x processes samples, with ``split_batches`` of the loader's batch size.
    They are as many on each process, whatever ``even_batches`` says; ``drop_last`` leaves out the
    last one where it is smaller. ``dispatch_batches`` has the main process read all of them.

    The epoch is the one that was last given to the sampler, a course, or the loader itself by
    ``set_epoch``, else one more than the last that was iterated to its end; the loader's length is
    that of this epoch, until the next is chosen or begins. ``accelerator.skip_first_batches`` keeps
    it, and so does a training that is resumed, whose pruner has been loaded.

    Raises:
        TypeError: a loader of another class than torch's.
        ValueError: a loader that is prepared already, has no PrunedSampler, or one that gives each
            process a share of its own; a batch size that ``split_batches`` cannot split; ways of
            sharing the data that are not known here.
        RuntimeError: Accelerate has changed what this relies on.
    """
    if isinstance(getattr(loader, "batch_sampler", None), _Batches):
        return loader
    _refuse_prepared(loader)
    sampler, batch_size, drop_last = parts_of(loader)
    if not isinstance(sampler, PrunedSampler):
        raise ValueError(
            "loader: expected DataLoader(IndexedDataset(data), batch_size, "
            f"sampler=PrunedSampler(pruner)), got one with a {type(sampler).__name__}"
        )
    if sampler._replicas not in (None, 1):
        raise ValueError(
            f"loader: its PrunedSampler was made for rank {sampler._rank} of {sampler._replicas}, "
            "and it is sharded here; leave num_replicas and rank out"
        )
    processes = accelerator.num_processes
    _refuse_parallelism(accelerator)
    if accelerator.split_batches:
        batch_size, rest = divmod(batch_size, processes)
        if rest:
            raise ValueError(
                f"loader: split_batches splits its batches among {processes} processes, of which "
                f"{batch_size * processes + rest} is no multiple"
            )
    dispatches = bool(accelerator.dispatch_batches) and processes > 1
    if dispatches and accelerator.use_stateful_dataloader:
        raise ValueError(
            "accelerator: dispatch_batches=True with use_stateful_dataloader=True loses its place, "
            "for Accelerate counts its batches by process; choose one of them"
        )
    sampler.shard = "never"
    batches = (_Dispatched if dispatches else _Batches)(
        sampler,
        batch_size,
        drop_last=drop_last,
        num_replicas=processes,
        rank=accelerator.process_index,
    )
    prepared = prepare_data_loader(
        reads(loader, batches),
        accelerator.device,
        num_processes=1,  # what it reads is this process's part already
        process_index=0,
        split_batches=dispatches,
        put_on_device=accelerator.device_placement,
        rng_types=accelerator.rng_types.copy(),
        dispatch_batches=dispatches,
        slice_fn_for_dispatch=_own_part if dispatches else None,
        non_blocking=accelerator.non_blocking,
        use_stateful_dataloader=accelerator.use_stateful_dataloader,
    )
    if not {"iteration", "_drop_last"} <= set(vars(prepared)):
        raise _changed("its loaders have no iteration or _drop_last")
    # Or it would add samples to the last batch, and gather_for_metrics take as many away, both of
    # them by the length of the data set.
    prepared._drop_last = True
    prepared._is_accelerate_prepared = True
    if accelerator.prepare_data_loader(prepared) is not prepared:
        raise _changed("it prepares what is prepared")
    batches.belong_to(prepared)
    return prepared


def _refuse_prepared(loader: Any) -> None:
    if getattr(loader, "_is_accelerate_prepared", False) or hasattr(loader, "base_dataloader"):
        raise ValueError(
            "loader: was prepared by accelerator.prepare(), which shards what it is given; give "
            "the loader to cpfast's function first, and what that returns to accelerator.prepare()"
        )


def _refuse_parallelism(accelerator: Accelerator) -> None:
    if accelerator.distributed_type in (DistributedType.MEGATRON_LM, DistributedType.XLA):
        kind = accelerator.distributed_type.value
        raise ValueError(f"accelerator: {kind} reads data in a way of its own, not known here")
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        if world != accelerator.num_processes:
            raise ValueError(
                f"accelerator: knows {accelerator.num_processes} of the {world} processes, each of "
                "which would train by itself; on CPUs make it by Accelerator(cpu=True)"
            )
    config = accelerator.parallelism_config
    for name in ("tp_size", "cp_size", "sp_size"):
        if config is not None and getattr(config, name) > 1:
            raise ValueError(
                f"accelerator: {name} is {getattr(config, name)}: processes that share a batch are "
                "not known here, and each process would read another"
            )


def _changed(how: str) -> RuntimeError:
    return RuntimeError(
        f"cpfast.integrations.accelerate: written for accelerate 1.15, and of "
        f"{accelerate.__version__} {how}; please report it"
    )


class _Batches(PlannedBatches):
    """Accelerate counts epochs in each of its loaders, from 0 in each training, and gives that
    number to the sampler at each iteration, whatever this was told before. Its loaders find this
    ``set_epoch``, and not the sampler; those that skip batches do not find it, so that their epoch
    is the one that was chosen."""

    even_batches = True  # which join_uneven_inputs sets; there is nothing to do about it

    def __init__(self, source: PrunedSampler, batch_size: int, **options: Any) -> None:
        super().__init__(source, batch_size, **options)
        self._is_ready = False
        # Weakly: of a loader in a cycle, torch waits ten seconds for the end of persistent workers.
        self._loader: Callable[[], Any] = lambda: None
        self._is_chosen = source.epoch > 0
        source.told.append(self._told)

    def belong_to(self, loader: Any) -> None:
        """From when on there is something to iterate."""
        self._is_ready, self._loader = True, weakref.ref(loader)
        loader.iteration = self.source.epoch
        if loader.use_stateful_dataloader:
            # It has begun an iteration, of nothing, for the state that it had at first.
            loader.base_dataloader.load_state_dict({})

    def _told(self, epoch: int) -> None:
        self._is_chosen = True
        self._count_from(epoch)

    def _count_from(self, epoch: int) -> None:
        if (loader := self._loader()) is not None:
            loader.iteration = epoch

    def set_epoch(self, epoch: int) -> None:
        """From the loader: its count, or what its user has given it."""
        planned = self.source.pruner.planned
        if epoch == 0 and not self._is_chosen and planned is not None:  # resumed
            epoch = planned[0] + (self.source.pruner.remaining == 0)
        self.source.set_epoch(epoch)

    def _plan(self) -> list[int]:
        return self.source.plan().tolist()  # which StatefulDataLoader asks for twice, to skip

    def __iter__(self) -> Iterator[list[int]]:
        if not self._is_ready:
            return
        is_counted = GradientState().active_dataloader is self._loader()
        if not self._is_chosen:
            self.set_epoch(0)
        epoch = self.source.epoch
        yield from super().__iter__()
        if not is_counted and self.source.epoch == epoch:  # by a loader that skips batches
            self._count_from(epoch + 1)


class _Dispatched(_Batches):
    """Of all processes, which the main one reads; the others' losses are weighted by the plan too,
    so that they make it as well."""

    @property
    def sampler(self) -> _Dispatched:
        """Where loaders that dispatch look for set_epoch."""
        return self

    def _own(self, batch: list[int]) -> list[int]:
        return batch

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(super().__iter__()))


def _own_part(data: Any, tensor_slice: slice, process_index: int, num_processes: int) -> Any:
    """In place of Accelerate's slice, which has to be of one size for all."""
    return slice_tensors(data, part_of(find_batch_size(data), num_processes, process_index))
