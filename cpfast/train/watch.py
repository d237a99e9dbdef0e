"""Several criteria in one run: one of them drives, and the others are watched, at their cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cpfast.detection import CriticalPeriodDetector, criteria
from cpfast.detection.probe import ModelProbe, check_needs
from cpfast.forms import shown
from cpfast.train import extension
from cpfast.train.clock import Clock
from cpfast.train.config import Config, watchable
from cpfast.train.errors import UserError
from cpfast.train.metrics import CriterionMetrics

__all__ = ["Watch"]


class Watch:
    """The detectors of a run. Each judges for itself; the recipe listens to the driving one.

    What several of them measure is measured once, and charged to the first of them, of which the
    driving one is the first of all. Who needs batches of its own is not asked any more once it has
    decided: that would be paid for nothing.

    Attributes:
        driving: the detector of ``--criterion``.
        detectors: all by name, the driving one first.
        needs: what they need of a probe; nothing where the run measures nothing.

    Raises:
        UserError: a criterion that was named does not go with the run. Of ``--watch all`` those
            that do not are left out.
    """

    def __init__(self, config: Config, model: nn.Module) -> None:
        self._config = config
        self.driving = _detector(config, "--criterion", config.criterion, model, at=config.at)
        self.detectors = {config.criterion: self.driving}
        takes_all = "all" in config.watched
        for name in watchable() if takes_all else config.watched:
            if name in self.detectors:
                continue
            try:
                self.detectors[name] = _detector(config, "--watch", name, model)
            except UserError:
                if not takes_all:
                    raise
        rules = [detector.rule for detector in self.detectors.values()]
        needs = {need for rule in rules for need in rule.needs}
        self.needs = tuple(sorted(needs)) if config.detect else ()
        # of those that were asked in this epoch
        self._samples: dict[str, int] = {}
        self._widths: dict[str, int] = {}

    def measure(self, probe: ModelProbe, clock: Clock) -> list[Tensor]:
        """What each measures after an epoch: [width] float64, not read yet."""
        measured = []
        self._samples.clear()
        self._widths.clear()
        for name, detector in self.detectors.items():
            if detector.ended and "batches" in detector.rule.needs:
                continue
            before = probe.measured_samples
            with clock.part(_part(name)):
                values = detector.rule.measure(probe)
            self._samples[name] = probe.measured_samples - before
            self._widths[name] = len(values)
            measured.append(values.double())
        return measured

    def split(self, values: list[float]) -> dict[str, list[float]]:
        """The values of each, of what ``measure`` gave once it is read."""
        left = iter(values)
        return {name: [next(left) for _ in range(width)] for name, width in self._widths.items()}

    def step(self, values: dict[str, list[float]], epoch: int, clock: Clock) -> None:
        """Judge after ``epoch`` epochs."""
        for name, numbers in values.items():
            with clock.part(_part(name)):
                self.detectors[name].step(numbers, epoch)

    def lines(self, epoch: int, seconds: dict[str, float]) -> dict[str, CriterionMetrics]:
        """Of the epoch's metrics.

        Args:
            seconds: what ``clock`` read.
        """
        return {
            name: {
                "period_end": detector.end_epoch,
                "censored": detector.censored,
                "statistic": statistic_of(detector, epoch),
                "seconds": seconds.get(_part(name), 0.0),
                "samples": self._samples.get(name, 0),
            }
            for name, detector in self.detectors.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Of those that do not drive, by name."""
        return {
            name: detector.state_dict()
            for name, detector in self.detectors.items()
            if detector is not self.driving
        }

    def load(self, watched: dict[str, Any], driving: dict[str, Any]) -> None:
        """Tell all what was measured so far: what they decided follows from it.

        A fork may be driven by another criterion than the run that it comes from: a given epoch, or
        one that was watched there, or of the rotation, as was that run's. What nobody watched there
        and only is watched here begins anew.

        Args:
            watched: `state_dict`.
            driving: the state of the driving detector.

        Raises:
            ValueError: it says nothing to the criterion that drives.
        """
        states = {driving["criterion"]: driving, **watched}
        own, rule = self.driving.criterion, self.driving.rule
        if rule.is_given or (rule.of_rotation and _is_of_rotation(driving["criterion"])):
            states.setdefault(own, driving)
        if own not in states:
            raise ValueError(f"detector: it measured for {shown(driving['criterion'])}, not {own}")
        for name, detector in self.detectors.items():
            for epoch, values in states[name]["history"] if name in states else ():
                # as it was judged then, of a run that was extended since
                detector.total_epochs = extension.total_at(self._config, epoch - 1)
                detector.step(values, epoch)
            detector.total_epochs = self._config.epochs


def _is_of_rotation(name: str) -> bool:
    return name in criteria and getattr(criteria[name].factory, "of_rotation", False)


def statistic_of(detector: CriticalPeriodDetector, epoch: int) -> float | None:
    """What decides, if there is such a number after this epoch."""
    last = detector.statistics[-1] if detector.statistics else None
    return last[1] if last is not None and last[0] == epoch else None


def _detector(
    config: Config, option: str, name: str, model: nn.Module, **options: Any
) -> CriticalPeriodDetector:
    try:
        detector = CriticalPeriodDetector(
            name,
            config.epochs,
            patience=config.patience,
            not_before=config.not_before,
            **options,
        )
        if config.detect:
            check_needs(detector.rule.needs, model)
    except ValueError as error:
        raise UserError(f"{option} {name}: {error}") from error
    return detector


def _part(name: str) -> str:
    return f"criterion {name}"
