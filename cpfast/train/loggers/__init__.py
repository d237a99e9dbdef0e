"""Where a run's numbers go as it trains, beside metrics.jsonl: one module for each place."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cpfast.registry import Registry
from cpfast.train.errors import MissingLibrary
from cpfast.train.metrics import EpochMetrics

__all__ = ["Log", "Logger", "Values", "check", "loggers", "named", "values"]

Values = Mapping[str, float | None]
"""Of an epoch, by tag: the same tags in every epoch of a run; None where there is no value."""


class Logger:
    """A place, opened when the training begins or goes on.

    Args:
        folder: of the run.
        settings: of the run.
        past: the epochs that are completed, from the first on. What the place holds of later ones,
            which will be trained again, is to be forgotten, and what it lacks is to be added.

    Attributes:
        LIBRARY: the module that it needs, and by which name it is installed; None for none.
    """

    LIBRARY: ClassVar[tuple[str, str] | None] = None

    def __init__(self, folder: Path, settings: Mapping[str, Any], past: Sequence[Values]) -> None:
        raise NotImplementedError

    def log(self, epoch: int, values: Values) -> None:
        """After an epoch, counted from 1."""
        raise NotImplementedError

    def close(self) -> None:
        """Once nothing more comes."""


loggers: Registry[Logger] = Registry("logger", "cpfast.train.loggers", "cpfast.loggers")


class Log:
    """The loggers of a run, which the first process holds.

    Args:
        names: of loggers, each once.
        samples: to train on, in all.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], samples: int
    ) -> None:
        self._names = names
        self._folder = folder
        self._settings = settings
        self._samples = samples
        self._opened: list[Logger] = []

    def begin(self, past: Sequence[EpochMetrics]) -> None:
        """Before the first epoch that is trained now, after those that are completed."""
        done = [values(metrics, self._samples) for metrics in past]
        for name in self._names:
            make = loggers[name].factory
            self._opened.append(make(self._folder, self._settings, done))

    def epoch(self, metrics: EpochMetrics, kwh: float | None) -> None:
        """
        Args:
            kwh: used so far, where it has just been read.
        """
        found = values(metrics, self._samples, kwh)
        for logger in self._opened:
            logger.log(metrics["epoch"], found)

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


def named(text: str | None) -> tuple[str, ...]:
    """The names in a list with commas, each once."""
    names = (name.strip() for name in (text or "").split(","))
    return tuple(dict.fromkeys(filter(None, names)))


def check(names: Sequence[str]) -> None:
    """Whether what they need is there, before anything is trained.

    Raises:
        MissingLibrary: one of them cannot be imported.
    """
    for name in names:
        library = loggers[name].factory.LIBRARY  # type: ignore[attr-defined]
        if library is not None:
            _import(name, *library)


def _import(name: str, module: str, package: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary(
            f"--log {name} needs {package}, which cannot be imported ({error}): "
            f"pip install {package}"
        ) from error


def values(
    metrics: EpochMetrics, samples: int, kwh: float | None = None
) -> dict[str, float | None]:
    """What is logged of an epoch, by the tags that cpfast's integrations log under, and those of
    loss, accuracy and learning rate.

    Args:
        samples: to train on, in all.
        kwh: used so far.
    """
    end, loss = metrics["period_end"], metrics["test_loss"]
    return {
        "lr": metrics["lr"],
        "train/loss": metrics["train_loss"],
        "test/loss": loss,
        "test/accuracy": metrics["test_accuracy"],
        "cpfast/rotation": metrics["rotation_mean"],
        **{f"cpfast/rotation/{name}": value for name, value in metrics["rotation"].items()},
        "cpfast/kept": metrics["planned_samples"] / (metrics["repeats"] * samples),
        "cpfast/period_end": None if end is None else float(end),
        "cpfast/energy_kwh": kwh if kwh is None or math.isfinite(kwh) else None,
    }
