"""Does the rule see learning? It is tried on true labels, on random ones, and on mere diffusion.

Random labels leave nothing to learn but by heart; the diffusion null (`null`) has no data at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cpfast.studies.document import Document
from cpfast.studies.falsify import picture, table
from cpfast.studies.runner import Runner
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import Study, configured, needs_rotation, studies
from cpfast.train.config import LABELS, Config
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

FACTORS = (0.5, 1.0, 2.0)
LARGEST_FACTOR = 1000.0


class Setting(NamedTuple):
    """One point of the grid."""

    batch_size: int
    weight_decay: float
    total_epochs: int

    @property
    def name(self) -> str:
        return f"batch{self.batch_size}-decay{self.weight_decay}-epochs{self.total_epochs}"


@studies.register("falsify", source="this project; arXiv 2006.08419, 2305.17212")
@dataclass(frozen=True)
class Falsification(Study):
    """Does a criterion see learning? Tried on true and random labels, and on mere diffusion.

    Labels x batch size x weight decay x T x seeds, each until the rule fires, or T. The learning
    rate stays as configured, as in the paper.

    Attributes:
        batch_factors, decay_factors, epoch_factors: of the configured values.

    Raises:
        UserError: a factor is not positive.
    """

    batch_factors: tuple[float, ...] = FACTORS
    decay_factors: tuple[float, ...] = FACTORS
    epoch_factors: tuple[float, ...] = FACTORS

    KIND: ClassVar = "falsify"
    HEAD: ClassVar = {"batch_factors": list, "decay_factors": list, "epoch_factors": list}
    EXTENDS: ClassVar = {
        f"{name}_factors": f"--{name}-factors" for name in ("batch", "decay", "epoch")
    }
    KEY: ClassVar = {
        "labels": (str,), "batch_size": (int,), "weight_decay": (int, float),
        "total_epochs": (int,), "seed": (int,),
    }  # fmt: skip

    EVALUATED: ClassVar = False  # a run ends where its rule fires

    def __post_init__(self) -> None:
        for name in ("batch", "decay", "epoch"):
            for factor in getattr(self, f"{name}_factors"):
                if not 0 < factor <= LARGEST_FACTOR:
                    raise UserError(
                        f"--{name}-factors must be positive, and {LARGEST_FACTOR:g} at most; "
                        f"got {factor}"
                    )

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        for name, what in (("batch", "batch size"), ("decay", "weight decay"), ("epoch", "epochs")):
            parser.add_argument(
                f"--{name}-factors", type=float, nargs="+", metavar="FACTOR",
                help=f"of the {what}; default: {' '.join(f'{f:g}' for f in FACTORS)}",
            )  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        if options.get("labels") is not None:
            raise UserError(f"--labels {options['labels']}: falsify has both; leave it out")
        needs_rotation(options)
        names = ("batch_factors", "decay_factors", "epoch_factors")
        own: dict[str, Any] = {
            name: tuple(options[name]) for name in names if options[name] is not None
        }
        return cls(*configured(options, energy=False), **own)

    def grid(self) -> list[Setting]:
        """Each setting once, though rounding may make two of them one."""
        config = self.config
        settings = [
            Setting(
                max(1, round(batch * config.batch_size)),
                decay * config.weight_decay,
                max(1, round(epochs * config.epochs)),
            )
            for batch, decay, epochs in product(
                self.batch_factors, self.decay_factors, self.epoch_factors
            )
        ]
        return list(dict.fromkeys(settings))

    def configured(self, setting: Setting) -> Config:
        """The settings of a run: only its rotation is of interest."""
        return self.config.replace(
            method="full", batch_size=setting.batch_size, weight_decay=setting.weight_decay,
            epochs=setting.total_epochs, eval_every=setting.total_epochs, energy=False,
        )  # fmt: skip

    def wanted(self, results: Results) -> int:
        return len(self.grid()) * len(LABELS) * len(self.seeds)

    def fault(self, entry: Entry) -> str | None:
        setting = Setting(*(entry[key] for key in Setting._fields))
        known = entry["labels"] in LABELS and setting in self.grid()
        return None if known else f"{setting.name}, {entry['labels']} labels, is not of its grid"

    def largest_batch(self) -> int:
        return max(setting.batch_size for setting in self.grid())

    def needs_scipy(self) -> bool:
        return True  # for rank correlations

    def run(self, runner: Runner) -> None:
        for seed, setting, labels in product(self.seeds, self.grid(), LABELS):
            if runner.find(labels=labels, seed=seed, **setting._asdict()) is None:
                entry = self._run_one(seed, setting, labels, runner)
                runner.store({"labels": labels, **setting._asdict(), **entry})

    def _run_one(self, seed: int, setting: Setting, labels: str, runner: Runner) -> Entry:
        folder = RunFolder(runner.out / f"seed{seed}" / f"{setting.name}-{labels}")
        config = self.configured(setting).replace(seed=seed, labels=labels)
        label = f"seed {seed}, {setting.name}, {labels} labels"
        diverged = runner.train(config, folder, label, until=lambda t: t.detector.ended)
        return entry_of(folder, seed, diverged, charged=True)

    def label(self, entry: Entry) -> str:
        return (
            f"batch {entry['batch_size']:>4}, weight decay {entry['weight_decay']:<7g}, "
            f"T {entry['total_epochs']:>4}, {entry['labels']:<6} labels"
        )

    def outcome(self, entry: Entry) -> str:
        end = entry["period_end"]
        return "never fired" if end is None else f"fired after epoch {end}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"falsify.png": partial(picture.draw, self, results)}
