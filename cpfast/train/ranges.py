"""What the numbers among a run's settings may be, each looked at by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from cpfast.train.errors import UserError

__all__ = ["RANGES", "check_choice", "check_range", "option_of"]

MOST_THREADS = 1024
LARGEST = 10**9  # of all counts; few things fit in memory by then


class _Rule(NamedTuple):
    """`words` follow "--option must be"."""

    holds: Callable[[float], bool]
    words: str


_COUNT = (
    _Rule(lambda x: x >= 1, "at least 1"),
    _Rule(lambda x: x <= LARGEST, f"at most {LARGEST:,}"),
)
_THREADS = (_Rule(lambda x: 1 <= x <= MOST_THREADS, f"in 1 .. {MOST_THREADS}"),)
_SEED = (_Rule(lambda x: 0 <= x < 2**32, "in 0 .. 2**32 - 1"),)
_POSITIVE = (_Rule(lambda x: math.isfinite(x) and x > 0, "finite and positive"),)
_NOT_NEGATIVE = (_Rule(lambda x: math.isfinite(x) and x >= 0, "finite and not negative"),)
_SHARE = (_Rule(lambda x: 0 <= x <= 1, "in [0, 1]"),)
_BELOW_ONE = (_Rule(lambda x: 0 <= x < 1, "in [0, 1)"),)
_WITHIN = (_Rule(lambda x: 0 < x < 1, "in (0, 1)"),)
_POINTS = (_Rule(lambda x: 0 < x < 100, "in (0, 100), in points of accuracy"),)
_ABOVE_ZERO = (_Rule(lambda x: 0 < x <= 1, "in (0, 1]"),)

RANGES: dict[str, tuple[_Rule, ...]] = {
    **dict.fromkeys(
        (
            "epochs", "batch_size", "repeats", "eval_every", "limit", "patience", "not_before",
            "accumulate", "save_every", "limit_test",
        ),
        _COUNT,
    ),
    "threads": _THREADS,
    "seed": _SEED,
    **dict.fromkeys(("lr", "clip", "decay_power"), _POSITIVE),
    **dict.fromkeys(("mixup", "cutmix", "weight_decay", "price_kwh", "price_hour"), _NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "warmup", "label_smoothing"), _BELOW_ONE),
    **dict.fromkeys(("bn_momentum", "keep"), _ABOVE_ZERO),
    **dict.fromkeys(("ema", "guard_share"), _WITHIN),
    "guard": _POINTS,
    "anneal": _SHARE,
}  # fmt: skip
"""By the setting's name."""


def check_range(setting: str, value: float | None) -> None:
    """
    Raises:
        UserError: it is out of range; None is not.
    """
    for rule in RANGES[setting]:
        if value is not None and not rule.holds(value):
            raise UserError(f"{option_of(setting)} must be {rule.words}, got {value}")


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: it is none of them.
    """
    if value not in choices:
        raise UserError(f"{option} must be one of {', '.join(choices)}; got {value!r}")


def option_of(setting: str) -> str:
    """Of the command line.

    >>> option_of("batch_size")
    '--batch-size'
    """
    return f"--{setting.replace('_', '-')}"
