"""When the critical learning period has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cpfast.arguments import real, typed, whole
from cpfast.detection.criterion import Criterion, Measured, criteria
from cpfast.forms import Maybe, Open, Plain, Several, Table, check
from cpfast.moment import Moment

__all__ = ["CriticalPeriodDetector"]

STATE = Open(
    {
        "criterion": str,
        "options": Table(Plain),
        "total_epochs": int,
        "history": Several((int, Several(float))),
        "end_epoch": Maybe(int),
        "reason": Maybe(str),
    },
    # missing in states of before they were there, which were decided as by the defaults
    {"patience": int, "not_before": Maybe(int)},
)
"""The form of a detector's state."""


class CriticalPeriodDetector:
    """Takes what a criterion measured in each epoch, and says once when the critical learning
    period has ended.

    The criteria are in :data:`cpfast.criteria`: ``"slope45"`` (arXiv 2506.15954) watches the mean
    layer rotation, ``"fixed"`` is a given epoch, the control of every comparison; ``cpfast list``
    shows all. Nothing irreversible should follow from a detection: it is a rule of thumb.

    Args:
        criterion: a name, or a :class:`~cpfast.detection.Criterion`.
        total_epochs: T, the length of the training in epochs.
        patience: hysteresis: for how many judged epochs in a row the criterion's verdict must hold.
        not_before: the first epoch (from 1) that is judged; None: the criterion's ``earliest``.
            Neither changes a given epoch.
        options: the criterion's own, such as ``window`` of slope45 and ``at`` of fixed; None is
            as if not given.

    Attributes:
        criterion: its name; of a criterion that was given as an object, its class's.
        rule: the criterion itself.
        ended: whether the period has ended.
        end_epoch: the epoch (from 1) after which it had, else None: the paper's cp.
        censored: whether the decision came at the first epoch at which it could have come: then
            the true end may have been earlier, and the reason says so. A given epoch never is.
        reason: one line for a log.
        history: the (epoch, value) pairs so far; where a criterion measures several numbers, or
            none, the value is a tuple.
        statistics: the (epoch, number) pairs so far of what decides: the slopes of slope45.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for an unknown criterion, or numbers out of range.
    """

    @typed
    def __init__(
        self,
        criterion: str | Criterion = "slope45",
        total_epochs: int = 200,
        *,
        patience: int = 1,
        not_before: int | None = None,
        **options: Any,
    ) -> None:
        if total_epochs < 1:
            raise ValueError(f"total_epochs: expected at least 1, got {total_epochs}")
        if patience < 1:
            raise ValueError(f"patience: expected at least 1 epoch, got {patience}")
        if not_before is not None and not_before < 1:
            raise ValueError(f"not_before: expected an epoch from 1 on, got {not_before}")
        given = {name: value for name, value in options.items() if value is not None}
        if isinstance(criterion, str):
            self.rule: Criterion = criteria.make(criterion, **given)
            self.criterion = criterion
        else:
            if given:
                raise ValueError(f"{next(iter(given))}: goes with the name of a criterion alone")
            self.rule = criterion
            self.criterion = type(criterion).__name__
        self.rule.check(total_epochs)
        self.total_epochs = total_epochs
        self.patience = patience
        self.not_before = not_before
        self._options = given
        self._measured: list[Measured] = []
        self._judged: list[int] = []  # the epochs that were, until the end
        self._held = 0  # for so many of them in a row
        self.statistics: list[tuple[int, float]] = []
        self.end_epoch: int | None = None
        self.reason: str | None = None

    @property
    def ended(self) -> bool:
        return self.end_epoch is not None

    @property
    def censored(self) -> bool:
        end = self.end_epoch
        judged = sum(epoch <= end for epoch in self._judged) if end is not None else 0
        return judged == self.patience and not self.rule.is_given

    @property
    def history(self) -> list[tuple[int, float | tuple[float, ...]]]:
        return [(m.epoch, m.values[0] if len(m.values) == 1 else m.values) for m in self._measured]

    @property
    def slopes(self) -> list[tuple[int, float]]:
        """The :attr:`statistics` of slope45 by their name."""
        return self.statistics

    def step(self, value: float | Sequence[float] | Tensor, epoch: int) -> bool:
        """Takes what was measured after ``epoch`` epochs (from 1). True exactly once: when the
        period has ended.

        Reading a tensor on a GPU synchronises, which is what an epoch's end is for.

        Args:
            value: a number, or as many as the criterion measures. NaN says, of one number among
                several, that there is none yet.

        Raises:
            ValueError: where a single value is not finite or the epochs do not increase; nothing
                is recorded then.
        """
        epoch, values = whole("epoch", epoch), _numbers(value)
        if len(values) == 1 and not math.isfinite(values[0]):
            raise ValueError(
                f"value: expected a finite number after epoch {epoch}, got {values[0]}"
            )
        last = self._measured[-1].epoch if self._measured else 0
        if epoch <= last:
            raise ValueError(f"epoch: expected more than {last}, got {epoch}")
        self._measured.append(Measured(epoch, values))
        moment = Moment(epoch, self.total_epochs, self.end_epoch)
        statistic = self.rule.statistic(self._measured, moment)
        if statistic is not None:
            self.statistics.append((epoch, statistic))
        is_given = self.rule.is_given
        if self.ended or not self.rule.is_judged(epoch):
            return False
        if self.not_before is not None and epoch < self.not_before and not is_given:
            return False
        self._judged.append(epoch)
        reason = self.rule.judge(self._measured, moment)
        self._held = 0 if reason is None else self._held + 1
        if reason is None or (self._held < self.patience and not is_given):
            return False
        self.end_epoch = epoch
        if self.patience > 1 and not is_given:
            reason += f"; so for {self.patience} judged epochs in a row"
        if self.censored:
            reason += "; censored: no earlier epoch could have been found"
        self.reason = reason
        return True

    def state_dict(self) -> dict[str, Any]:
        """The settings, the history and what was detected: numbers and strings alone."""
        return {
            "criterion": self.criterion,
            "options": dict(self._options),
            "total_epochs": self.total_epochs,
            "patience": self.patience,
            "not_before": self.not_before,
            "history": [(m.epoch, list(m.values)) for m in self._measured],
            "end_epoch": self.end_epoch,
            "reason": self.reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, the settings included.

        Raises:
            ValueError: where something is missing or of another type, or it is that of a criterion
                that was given as an object, and this one has another; nothing is changed then.
        """
        check(state, STATE, "state_dict")
        rule: str | Criterion = state["criterion"]
        options = dict(state["options"])
        if (rule, options) == (self.criterion, self._options):
            rule, options = self.rule, {}
        elif rule not in criteria:
            raise ValueError(
                f"state_dict['criterion']: expected {self.criterion!r}, got {state['criterion']!r}"
            )
        when = {name: state[name] for name in ("patience", "not_before") if name in state}
        try:
            restored = CriticalPeriodDetector(rule, state["total_epochs"], **when, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state_dict['options']: {error}") from error
        restored.criterion, restored._options = state["criterion"], dict(state["options"])
        try:
            for epoch, values in state["history"]:
                restored.step(values, epoch)
        # whatever a criterion makes of numbers that it has not measured
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"state_dict['history']: {error}") from error
        end, last = state["end_epoch"], max((m.epoch for m in restored._measured), default=0)
        if end is not None and not 1 <= end <= last:
            raise ValueError(f"state_dict['end_epoch']: expected one of 1..{last}, got {end}")
        restored.end_epoch, restored.reason = end, state["reason"]
        self.__dict__.update(restored.__dict__)


def _numbers(value: float | Sequence[float] | Tensor) -> tuple[float, ...]:
    if isinstance(value, Tensor):
        value = value.tolist()
    several = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(real("value", one) for one in several)
