"""The diffusion null: how far a layer turns, and when a rule fires on it, where nothing is learned.

A scale-invariant layer whose rotation is in equilibrium between weight decay and gradient noise has
turned away from where it was by

    D(t) = 1 - exp(-sum of lr wd / (1 - momentum) over the t steps)

in expectation (Wan et al., arXiv 2006.08419; Kosson et al., arXiv 2305.17212). Layers begin out
of that equilibrium, and those without normalisation behind them never reach it; the null is a
yardstick, not a model of a run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

from cpfast.detection import CriticalPeriodDetector
from cpfast.train import optimizers
from cpfast.train.config import Config

# Of D per step, over lr * wd. SGD's decay is part of the gradient, and so passes through the
# momentum; AdamW's shrinks the weight itself. Nothing is known here of the others.
NULL_RATES: dict[str, Callable[[Config], float]] = {
    "sgd": lambda config: 1 / (1 - config.momentum),
    "adamw": lambda config: 1.0,
}
SCHEDULE_POINTS = 100  # of an epoch stand for all of its steps, of which there may be thousands


def null_rotations(config: Config, train_size: int) -> Iterator[float] | None:
    """D after epoch 1, 2 .. T by the run's own schedule; None for an optimizer without a null.

    Args:
        config: with the batch size, the weight decay and the epochs of the run.
        train_size: samples of one pass.
    """
    if config.optimizer not in NULL_RATES:
        return None
    schedule = optimizers.schedule(config)
    steps = config.repeats * train_size / config.batch_size
    rate = config.lr * config.weight_decay * NULL_RATES[config.optimizer](config)

    def rotations() -> Iterator[float]:
        turned = 0.0
        for epoch in range(config.epochs):
            points = (epoch + i / SCHEDULE_POINTS for i in range(SCHEDULE_POINTS))
            turned += steps * rate * statistics.fmean(schedule(p / config.epochs) for p in points)
            yield -math.expm1(-turned)

    return rotations()


def null_end(config: Config, train_size: int) -> int | None:
    """The epoch after which the criterion fires on the null, if it does."""
    rotations = null_rotations(config, train_size)
    detector = CriticalPeriodDetector(config.criterion, config.epochs)
    for epoch, rotation in enumerate(rotations or (), 1):
        if detector.step(rotation, epoch):
            return epoch
    return None
