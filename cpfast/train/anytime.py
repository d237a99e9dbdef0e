"""Bounds of a mean, and whether it is above or below a number, that hold however often one looks.

The mean of the population that `values`, in [-1, 1], were drawn from is bet against (arXiv
2010.09686, Waudby-Smith and Ramdas). Whoever doubts that it is at most m stakes, on each value in
turn, a share of a capital of 1, chosen by the values before it alone: were the mean at most m, the
capital would not grow in expectation, and so, by Ville's inequality, would ever reach 1 / alpha
with a probability of at most alpha (a nonnegative supermartingale). Where it does, m is refuted at
level alpha, at whichever value that is. The stakes are those of the paper's section 3.2 for a given
number of values, sqrt(2 log(1 / alpha) / (n s^2)) with the running estimate s^2 of the variance,
cut off at .9 of what could lose all: they cost nothing but power where they are unlucky. Of the
stakes tried on differences of 0, 1 and -1 (mixtures over constant ones, and the adaptive of its
section B.2) these found the most.

Several looks at the same samples are no such sequence: they are other values at each, of which one
does not continue the other. So look t has a test of its own, at level alpha / (t (t + 1)), which
add up to alpha over all looks there may ever be: the probability that any of them is wrong is at
most alpha, whatever links them, and whoever stops when.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["ALPHA", "Bounds", "bounds", "is_above", "is_below", "level"]

ALPHA = 0.05
_STAKED = 0.9  # of the capital, at most
_HALVINGS = 40


class Bounds(NamedTuple):
    """Of the mean, each at a level of its own: below one, or above the other, it is refuted."""

    lower: float
    upper: float


def level(look: int, alpha: float = ALPHA) -> float:
    """Of the look of a number, from 1 on, where all together have `alpha`.

    >>> [round(0.05 / level(look)) for look in (1, 2, 3)]
    [2, 6, 12]
    """
    return alpha / (look * (look + 1))


def is_above(values: np.ndarray, mean: float, alpha: float = ALPHA) -> bool:
    """Whether it is shown that the population's mean is above `mean`: where it is not, that is said
    with a probability of at most `alpha`.

    Args:
        values: [n] in [-1, 1], in an order that does not depend on them.
        mean: in (-1, 1).
    """
    return _refutes((1 + np.asarray(values, dtype=np.float64)) / 2, (1 + mean) / 2, alpha)


def is_below(values: np.ndarray, mean: float, alpha: float = ALPHA) -> bool:
    """As `is_above`, that it is below."""
    return is_above(-np.asarray(values, dtype=np.float64), -mean, alpha)


def bounds(values: np.ndarray, alpha: float = ALPHA) -> Bounds:
    """The largest mean that it is above, and the smallest that it is below; -1 and 1 where no mean
    is refuted."""
    return Bounds(_lower(values, alpha), -_lower(-np.asarray(values), alpha))


def _lower(values: np.ndarray, alpha: float) -> float:
    refuted, open_ = -1.0, 1.0
    for _ in range(_HALVINGS):  # the larger the mean, the smaller the capital
        middle = (refuted + open_) / 2
        if is_above(values, middle, alpha):
            refuted = middle
        else:
            open_ = middle
    return refuted


def _refutes(values: np.ndarray, mean: float, alpha: float) -> bool:
    """Whether betting on `values`, in [0, 1], refutes that their mean is at most `mean`."""
    if len(values) == 0:
        return False
    capital = np.log1p(_stakes(values, mean, alpha) * (values - mean)).cumsum()
    return bool(capital.max() >= math.log(1 / alpha))


def _stakes(values: np.ndarray, mean: float, alpha: float) -> np.ndarray:
    """On each value, from those before it."""
    number = np.arange(2, len(values) + 2)
    means = (0.5 + values.cumsum()) / number
    variances = (0.25 + np.square(values - means).cumsum()) / number
    known = np.concatenate([[0.25], variances[:-1]])
    stakes = np.sqrt(2 * math.log(1 / alpha) / (len(values) * known))
    return np.minimum(stakes, _STAKED / mean)
