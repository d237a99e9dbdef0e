"""Where should the repeats have ended? A sweep of switch epochs, and each criterion's regret.

k repeats until epoch e, then one, all forked from one full run: e = 0 is k1, e = T is full. The
sweep is repeated under other weight decays, batch sizes and lengths, where a rule that was fitted
to one recipe would go wrong.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.detection import CriticalPeriodDetector, criteria
from cpfast.studies.document import Document
from cpfast.studies.oracle import picture, table
from cpfast.studies.runner import Branch, Runner, check_branched
from cpfast.studies.settings import SETTINGS
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import Study, configured, named, needs_rotation, studies
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

POINTS = 7  # between k1 and full


@studies.register("oracle", source="this project")
@dataclass(frozen=True)
class Oracle(Study):
    """When is it best to go from k passes to one, and what do the criteria's choices lose?

    Settings x seeds x switch epochs. Criteria of the mean rotation choose; with --watch others too.

    Attributes:
        setting_names: of `SETTINGS`.
        switches: epochs of the base setting; in a setting of another length they are scaled.

    Raises:
        UserError: an unknown setting, an epoch outside of the training, or k = 1.
    """

    setting_names: tuple[str, ...] = tuple(SETTINGS)
    switches: tuple[int, ...] = ()

    KIND: ClassVar = "oracle"
    HEAD: ClassVar = {"setting_names": list, "switches": list}
    EXTENDS: ClassVar = {"setting_names": "--oracle-settings"}
    KEY: ClassVar = {"setting": (str,), "switch": (int,), "seed": (int,)}
    OWN: ClassVar = {"picks": (dict, type(None))}

    def __post_init__(self) -> None:
        for name in self.setting_names:
            if name not in SETTINGS:
                raise UserError(
                    f"--oracle-settings: must be of {', '.join(SETTINGS)}; got {name!r}"
                )
        for switch in self.switches:
            if not 0 <= switch <= self.config.epochs:
                raise UserError(
                    f"--switch-epochs must be in 0 .. {self.config.epochs} (--epochs), got {switch}"
                )
        if self.config.repeats == 1:
            raise UserError("--repeats 1: there is nothing to switch")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--oracle-settings", metavar="NAME[,NAME]",
            help=f"of the training, to try it in; default: {','.join(SETTINGS)}")  # fmt: skip
        add("--switch-epochs", type=int, nargs="+", metavar="EPOCH",
            help="when k becomes 1; default: about 7, each twice the one before")  # fmt: skip
        add("--watch", metavar="all|NAME[,NAME]",
            help="criteria whose choices are tried as well; default: those of the mean rotation "
            "alone")  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        needs_rotation(options)
        text = options["oracle_settings"]
        names = tuple(SETTINGS) if text is None else named("--oracle-settings", text)
        switches = tuple(sorted(set(options["switch_epochs"] or ())))
        return cls(*configured(options, energy=False), names, switches)

    def configured(self, setting: str) -> Config:
        """The settings of full: accuracy is only wanted at the end."""
        config = SETTINGS[setting](self.config).replace(method="full", energy=False)
        config = config.replace(criterion="slope45", at=None)
        return config.replace(eval_every=config.epochs)

    def grid(self, setting: str) -> list[int]:
        """0, T, and what is to be tried between them."""
        total = self.configured(setting).epochs
        scale = total / self.config.epochs
        between = [round(e * scale) for e in self.switches] or geometric(total)
        return sorted({0, total, *(e for e in between if 0 <= e <= total)})

    def wanted(self, results: Results) -> int:
        """Of each seed the grid, and off it the picks of the full runs that are stored."""
        grids = {name: self.grid(name) for name in self.setting_names}
        picked = [
            set(e["picks"].values()) - {None, *grids[e["setting"]]}
            for e in results["runs"] if e["picks"]
        ]  # fmt: skip
        return len(self.seeds) * sum(map(len, grids.values())) + sum(map(len, picked))

    def fault(self, entry: Entry) -> str | None:
        if entry["setting"] not in self.setting_names:
            return f"no setting {entry['setting']!r} in this comparison"
        total, picked = self.configured(entry["setting"]).epochs, entry["picks"]
        if not 0 <= entry["switch"] <= total:
            return f"'switch' is {entry['switch']}, of {total} epochs"
        if (picked is not None) != (entry["switch"] == total):
            return f"'picks' is {picked}, with 'switch' {entry['switch']} of {total} epochs"
        for pick in (picked or {}).values():
            if pick is not None and not (isinstance(pick, int) and 1 <= pick <= total):
                return f"'picks' is {picked}"
        if entry["diverged"] is None and entry["forward_samples"] < 1:
            return f"'forward_samples' is {entry['forward_samples']}, and not diverged"
        return None

    def largest_batch(self) -> int:
        return max(self.configured(name).batch_size for name in self.setting_names)

    def run(self, runner: Runner) -> None:
        for position, seed in enumerate(self.seeds):
            for setting in self.setting_names:
                total = self.configured(setting).epochs
                full = self._run(runner, setting, seed, total)
                rest = {*self.grid(setting), *(e for e in full["picks"].values() if e)} - {total}
                # As the arms of a comparison, they begin with another one for every seed.
                shift = position % len(rest) if rest else 0
                for switch in (sorted(rest) * 2)[shift : shift + len(rest)]:
                    self._run(runner, setting, seed, switch)

    def _run(self, runner: Runner, setting: str, seed: int, switch: int) -> Entry:
        key = {"setting": setting, "switch": switch, "seed": seed}
        if (stored := runner.find(**key)) is not None:
            return stored
        full = self.configured(setting).replace(seed=seed)
        parent = runner.out / f"seed{seed}" / setting
        folder = RunFolder(parent / f"switch{switch}")
        if 0 < switch < full.epochs and not folder.is_run():
            stored = runner.find(**{**key, "switch": full.epochs})
            assert stored is not None
            check_branched(folder, was_due=stored["epochs"] >= switch)
            reason = f"not run: full diverged before epoch {switch}"
            entry = {**key, "picks": None, **entry_of(None, seed, reason)}
            runner.store(entry)
            return entry
        branches = self._branches(setting, parent, full) if switch == full.epochs else []
        label = f"seed {seed}, {setting}, k = {full.repeats} until epoch {switch}"
        diverged = runner.train(switched(full, switch), folder, label, branches=branches)
        picked = None
        if switch == full.epochs:
            lines = folder.metrics()
            turned = [line for line in lines if line["rotation_mean"] is not None]
            picked = picks([(x["epoch"], x["rotation_mean"]) for x in turned], full.epochs)
            if full.watch is not None and lines:
                watched = lines[-1]["criteria"].items()
                picked |= {name: verdict["period_end"] for name, verdict in watched}
        entry = {**key, "picks": picked, **entry_of(folder, seed, diverged)}
        runner.store(entry)
        return entry

    def _branches(self, setting: str, parent: Path, full: Config) -> list[Branch]:
        """One for each epoch, due where that is of the grid or has just been picked."""
        grid = self.grid(setting)

        def is_due(switch: int, training: Training) -> bool:
            if training.epoch != switch:
                return False
            picked = picks(_curve(training), full.epochs)
            if full.watch is not None:
                detectors = training.watch.detectors.items()
                picked |= {name: detector.end_epoch for name, detector in detectors}
            return switch in grid or switch in picked.values()

        return [
            Branch(RunFolder(parent / f"switch{e}"), switched(full, e), partial(is_due, e))
            for e in range(1, full.epochs)
        ]

    def label(self, entry: Entry) -> str:
        return f"{entry['setting']:<13}, k = 1 after epoch {entry['switch']:>4}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"oracle.png": partial(picture.draw, self, results)}


def geometric(total: int) -> list[int]:
    """Epochs up to half of the training, each about twice the one before."""
    return sorted({max(1, round(total / 2**i)) for i in range(1, POINTS + 1)})


def switched(full: Config, switch: int) -> Config:
    """k repeats until `switch`, then one."""
    if switch == full.epochs:
        return full
    if switch == 0:
        return full.replace(repeats=1, detect=False, watch=None)
    return full.replace(method="detector", criterion="fixed", at=switch, watch=None)


def _curve(training: Training) -> list[tuple[int, float]]:
    """The mean rotation after each epoch."""
    means = [math.fsum(rotation) / len(rotation) for rotation in training.rotations]
    return list(enumerate(means, 1))


def picks(history: Sequence[tuple[int, float]], total: int) -> dict[str, int | None]:
    """The epoch at which each criterion, but the fixed one, ends the period of this rotation."""
    ends = {}
    for criterion, entry in criteria.items():
        if getattr(entry.factory, "of_rotation", False):
            detector = CriticalPeriodDetector(criterion, total)
            for epoch, value in history:
                detector.step(value, epoch)
            ends[criterion] = detector.end_epoch
    return ends
