"""The recipes that have a name."""

from __future__ import annotations

from cpfast.recipes.action import Window
from cpfast.recipes.freeze import Freeze
from cpfast.recipes.prune import Prune
from cpfast.recipes.recipe import Recipe, recipes
from cpfast.recipes.repeats import Repeats

# InfoBatch's delta: the share of the training after which nothing is left out.
PRUNED_SHARE = 0.875


@recipes.register("full", source="arXiv 2506.15954")
def full(total_epochs: int, repeats: int = 3) -> Recipe:
    """k augmented passes over the data in every epoch."""
    return Recipe(total_epochs, [Repeats(repeats)])


@recipes.register("detector", source="arXiv 2506.15954")
def detector(total_epochs: int, repeats: int = 3, anneal: float | None = None) -> Recipe:
    """k passes until the critical period has ended, then one.

    ``anneal``: share of what follows the period's end after which it is k again.
    """
    after = Window("after", end=1.0 if anneal is None else anneal)
    return Recipe(total_epochs, [Repeats(repeats), Repeats(1, after)])


@recipes.register("prune", source="arXiv 2303.04947")
def prune(
    total_epochs: int, repeats: int = 3, keep: float | None = None, anneal: float | None = None
) -> Recipe:
    """k passes over pruned data.

    ``keep``: share that pruning keeps; None: as the pruner was made.
    ``anneal``: share of the training after which nothing is pruned; None is InfoBatch's .875.
    """
    until = PRUNED_SHARE if anneal is None else anneal
    return Recipe(total_epochs, [Repeats(repeats), Prune(keep, Window(until=until))])


@recipes.register("detector+prune", source="arXiv 2506.15954, 2303.04947")
def detector_prune(
    total_epochs: int, repeats: int = 3, keep: float | None = None, anneal: float | None = None
) -> Recipe:
    """k passes until the critical period has ended, then one over pruned data.

    ``keep``: share that pruning keeps; None: as the pruner was made.
    ``anneal``: share of what follows the period's end after which it is k full passes again;
    None: nothing is pruned after .875 of the training, and there is one pass to the end.
    """
    if anneal is None:
        after, pruned = Window("after"), Window("after", until=PRUNED_SHARE)
    else:
        after = pruned = Window("after", end=anneal)
    return Recipe(total_epochs, [Repeats(repeats), Repeats(1, after), Prune(keep, pruned)])


@recipes.register("freeze", source="arXiv 2201.06227; this project")
def freeze(total_epochs: int, repeats: int = 3) -> Recipe:
    """k passes in every epoch, without a gradient for layers that have stopped turning."""
    return Recipe(total_epochs, [Repeats(repeats), Freeze()])


@recipes.register("detector+freeze", source="arXiv 2506.15954; this project")
def detector_freeze(total_epochs: int, repeats: int = 3, anneal: float | None = None) -> Recipe:
    """k passes until the critical period has ended, then one, frozen where nothing turns.

    ``anneal``: share of what follows the period's end after which it is k again, and all layers
    are trained.
    """
    after = Window("after", end=1.0 if anneal is None else anneal)
    return Recipe(total_epochs, [Repeats(repeats), Repeats(1, after), Freeze(window=after)])
