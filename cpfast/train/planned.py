"""What a recipe is going to cost, before any of it was trained."""

from __future__ import annotations

import math
import statistics

from cpfast.moment import Moment
from cpfast.recipes import Recipe

__all__ = ["of_an_epoch"]


def of_an_epoch(recipe: Recipe, epochs: int, keep: float | None = 0.5) -> float:
    """The mean over the epochs, against one pass over all data at full size: by what the recipe
    says of passes, samples, sizes and lengths. A period ends after a third of the training.

    Args:
        keep: the share of the samples that is left where the recipe prunes without saying so;
            None: each sample is left, whatever it says, for tokens are what is selected.
    """
    end, shares = math.ceil(epochs / 3), []
    for epoch in range(epochs):
        settings = recipe.settings(Moment(epoch, epochs, end if epoch >= end else None))
        kept = 1.0
        if settings.prune and keep is not None:
            kept = keep if settings.keep is None else settings.keep
        shares.append(settings.repeats * kept * settings.resolution**2 * settings.length)
    return statistics.fmean(shares)
