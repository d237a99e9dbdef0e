"""cpfast in a loop of one's own, alone or under torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from cpfast.arguments import typed, whole
from cpfast.detection import CriticalPeriodDetector
from cpfast.integrations.batches import PlannedBatches, WithIndex, parts_of, reads
from cpfast.integrations.course import Course
from cpfast.pruning import DataPruner
from cpfast.recipes import Recipe
from cpfast.sampling import IndexedDataset, PrunedSampler

__all__ = ["prepare"]


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
    energy: bool = False,
    log: Callable[..., Any] | None = None,
    seed: int = 0,
) -> tuple[Course, DataLoader]:
    """What a training by a recipe needs, and the loader that follows it. ::

        course, loader = prepare(loader, epochs=30)
        for epoch in course.epochs(model, optimizer):
            for (inputs, target), index in loader:
                loss = course.pruner.loss(model(inputs), target, index)

    The new loader has the batch size, the workers and all else of the given one. Under
    torch.distributed it gives each process its part, as many batches on each
    (:class:`~cpfast.integrations.batches.PlannedBatches`); the batch size is that of a process.

    Args:
        loader: shuffles a map-style data set, by ``shuffle=True`` or a DistributedSampler, whose
            place the plan takes.
        epochs: length of the training.
        recipe: or its name.
        repeats: passes over the data in an epoch of a named recipe's beginning; the papers' is 3.
        detector: None: ``CriticalPeriodDetector("slope45", epochs)``.
        pruner: None: ``DataPruner(len(dataset), epochs)``, InfoBatch's.
        applied, energy, log: what the loop applies by itself, whether its energy is metered, and
            who is told of each epoch, as :class:`~cpfast.integrations.course.Course` takes them.
        seed: of the plans, where there is no pruner.

    Raises:
        TypeError: for an argument of another type, or an iterable-style data set.
        ValueError: for a loader in another order than a shuffled one; what a course refuses.
    """
    epochs = whole("epochs", epochs, least=1)
    sampler, batch_size, drop_last = parts_of(loader)
    data = loader.dataset
    dataset = IndexedDataset(data)
    if not _shuffles(sampler, len(dataset)):
        raise ValueError(
            "loader: expected one that visits each sample in random order (shuffle=True, or a "
            f"DistributedSampler), for the plan takes its place; got a {type(sampler).__name__}"
        )
    if isinstance(recipe, str):
        recipe = Recipe.named(recipe, epochs, repeats=repeats)
    course = Course(
        CriticalPeriodDetector("slope45", epochs) if detector is None else detector,
        recipe=recipe,
        sampler=PrunedSampler(
            DataPruner(len(dataset), epochs, seed=seed) if pruner is None else pruner,
            shard="never",
            dataset=dataset,
        ),
        applied=applied,
        energy=energy,
        log=log,
    )
    assert course.sampler is not None
    batches = PlannedBatches(course.sampler, batch_size, drop_last=drop_last)
    return course, reads(loader, batches, dataset, WithIndex(loader.collate_fn))


def _shuffles(sampler: object, size: int) -> bool:
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == size
    if isinstance(sampler, DistributedSampler) and not isinstance(sampler, PrunedSampler):
        return sampler.shuffle
    return False
