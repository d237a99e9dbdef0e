"""When the critical learning period has ended."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

__all__ = ["CRITERIA", "CriticalPeriodDetector"]

CRITERIA = ("slope45", "fixed")


class CriticalPeriodDetector:
    """Watches one value an epoch, and says once when the critical learning period has ended.

    Criteria:
        ``"slope45"`` (arXiv 2506.15954): epochs 1..T are scaled to [0, 1]; the period has ended
        when the least-squares slope of the last ``window`` values against them makes an angle
        below 45 degrees, that is, when the mean layer rotation grows by less than 1 / (T - 1) an
        epoch. The paper's window is 5. The rule depends on T: one curve fires at epoch 5 of 50
        and at epoch 9 of 200.

        ``"fixed"``: epoch ``at``, whatever the values are; the control of every comparison.

    Nothing irreversible should follow from a detection: it is a rule of thumb.

    Args:
        criterion: one of the names above.
        total_epochs: T, the length of the training in epochs.
        window: how many of the last values ``slope45`` fits.
        at: the epoch of ``fixed``.

    Attributes:
        ended: whether the period has ended.
        end_epoch: the epoch (from 1) after which it had, else None: the paper's cp.
        reason: one line for a log.
        history: the (epoch, value) pairs so far.
        slopes: the (epoch, slope) pairs so far, for ``slope45``.

    Raises:
        ValueError: for an unknown criterion, or numbers out of range.
    """

    def __init__(
        self,
        criterion: str = "slope45",
        total_epochs: int = 200,
        window: int = 5,
        *,
        at: int | None = None,
    ) -> None:
        if criterion not in CRITERIA:
            raise ValueError(f"criterion: expected one of {CRITERIA}, got {criterion!r}")
        if total_epochs < 1:
            raise ValueError(f"total_epochs: expected at least 1, got {total_epochs}")
        if window < 2:
            raise ValueError(f"window: a slope needs at least 2 values, got {window}")
        if (criterion == "fixed") != (at is not None):
            raise ValueError(f"at: expected an epoch for 'fixed' alone, got {at} for {criterion!r}")
        if at is not None and at < 1:
            raise ValueError(f"at: expected an epoch from 1 on, got {at}")
        if at is not None and at > total_epochs:
            raise ValueError(f"at: expected at most total_epochs, {total_epochs}, got {at}")
        self.criterion = criterion
        self.total_epochs = total_epochs
        self.window = window
        self.at = at
        self.history: list[tuple[int, float]] = []
        self.slopes: list[tuple[int, float]] = []
        self.end_epoch: int | None = None
        self.reason: str | None = None

    @property
    def ended(self) -> bool:
        return self.end_epoch is not None

    def step(self, value: float | Tensor, epoch: int) -> bool:
        """Takes the value after ``epoch`` epochs (from 1). True exactly once: when it has ended.

        Reading a tensor on a GPU synchronises, which is what an epoch's end is for.

        Raises:
            ValueError: where the value is not finite or the epochs do not increase; nothing is
                recorded then.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"value: expected a finite number after epoch {epoch}, got {value}")
        last = self.history[-1][0] if self.history else 0
        if epoch <= last:
            raise ValueError(f"epoch: expected more than {last}, got {epoch}")
        self.history.append((epoch, value))
        reason = self._slope45(epoch) if self.criterion == "slope45" else self._fixed(epoch)
        if self.ended or reason is None:
            return False
        self.end_epoch, self.reason = epoch, reason
        return True

    def _slope45(self, epoch: int) -> str | None:
        if len(self.history) < self.window:
            return None
        recent = self.history[-self.window :]
        # With T = 1 there is nothing to scale by, and no second epoch to need it.
        scale = max(self.total_epochs - 1, 1)
        slope = _least_squares_slope([((e - 1) / scale, v) for e, v in recent])
        self.slopes.append((epoch, slope))
        if math.atan(slope) >= math.pi / 4:
            return None
        return (
            f"slope45: slope {slope:.3f} < 1 over epochs {recent[0][0]}-{epoch} "
            f"of {self.total_epochs}"
        )

    def _fixed(self, epoch: int) -> str | None:
        assert self.at is not None
        return f"fixed: epoch {self.at}" if epoch >= self.at else None

    def state_dict(self) -> dict[str, Any]:
        """The settings, the history and what was detected: numbers and strings alone."""
        return {
            "criterion": self.criterion,
            "total_epochs": self.total_epochs,
            "window": self.window,
            "at": self.at,
            "history": list(self.history),
            "slopes": list(self.slopes),
            "end_epoch": self.end_epoch,
            "reason": self.reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, the settings included."""
        restored = CriticalPeriodDetector(
            state["criterion"], state["total_epochs"], state["window"], at=state["at"]
        )
        restored.history = [(int(e), float(v)) for e, v in state["history"]]
        restored.slopes = [(int(e), float(s)) for e, s in state["slopes"]]
        restored.end_epoch, restored.reason = state["end_epoch"], state["reason"]
        self.__dict__.update(restored.__dict__)


def _least_squares_slope(points: list[tuple[float, float]]) -> float:
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return covariance / sum((x - mean_x) ** 2 for x, _ in points)
