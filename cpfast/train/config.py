"""One run's settings: a frozen, validated dataclass that goes to config.json and back."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpfast.detection import CRITERIA
from cpfast.pruning import POLICIES
from cpfast.recipes import METHODS
from cpfast.train.errors import UserError

MODELS = ("cnn", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
SCHEDULES = ("step", "cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")

# Where and how a run is executed or shown; these may change when it is resumed.
ENVIRONMENT = ("device", "threads", "energy", "plot")


@dataclass(frozen=True)
class Config:
    """Settings of one run. Fractions are in [0, 1], `lr` is per step at `batch_size`.

    Attributes:
        data: "digits", or the absolute path of an image folder or an .npz file.
        method: what is cut once the period has ended, see `cpfast.Recipe.from_method`.
        limit: number of training images, stratified; None for all.
        repeats: augmented passes over the data in an epoch of the critical period (k).
        keep: share of the below-average samples that pruning keeps.
        anneal: share after which all is spent again: in methods with a detector, of the epochs
            that follow the period's end (data and repeats); in method prune, of the training
            (data). None: pruning stops at .875 of the training, as InfoBatch's does, and the
            repeats stay away.
        at: epoch at which criterion "fixed" ends the period.
        eval_every: epochs between two evaluations; the last epoch is always evaluated.
        detect: measure the rotation; False only for arms that do without.
    """

    data: str
    model: str
    method: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    flip: bool
    eval_every: int
    seed: int = 0
    limit: int | None = None
    repeats: int = 3
    schedule: str = "step"
    policy: str = "infobatch"
    keep: float = 0.5
    anneal: float | None = None
    criterion: str = "slope45"
    at: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    detect: bool = True
    energy: bool = True
    plot: bool = True

    def __post_init__(self) -> None:
        _choice("--model", self.model, MODELS)
        _choice("--method", self.method, METHODS)
        _choice("--schedule", self.schedule, SCHEDULES)
        _choice("--policy", self.policy, POLICIES)
        _choice("--criterion", self.criterion, CRITERIA)
        _choice("--precision", self.precision, PRECISIONS)
        for option, value in (
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--repeats", self.repeats),
            ("--eval-every", self.eval_every),
            ("--limit", self.limit),
            ("--threads", self.threads),
        ):
            if value is not None and value < 1:
                raise UserError(f"{option} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed must be in 0 .. 2**32 - 1, got {self.seed}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"--lr must be positive, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"--weight-decay must not be negative, got {self.weight_decay}")
        if not 0 < self.keep <= 1:
            raise UserError(f"--keep must be in (0, 1], got {self.keep}")
        if self.anneal is not None and not 0 <= self.anneal <= 1:
            raise UserError(f"--anneal must be in [0, 1], got {self.anneal}")
        if self.criterion == "fixed":
            if self.at is None:
                raise UserError("--criterion fixed needs --at EPOCH")
            if not 1 <= self.at <= self.epochs:
                raise UserError(f"--at must be in 1 .. {self.epochs} (--epochs), got {self.at}")
        elif self.at is not None:
            raise UserError("--at goes with --criterion fixed")
        if self.precision == "fp16" and self.device == "cpu":
            raise UserError("--precision fp16 needs a CUDA device; on the CPU use bf16 or fp32")

    @property
    def prunes(self) -> bool:
        """Whether this run ever prunes, so that its samples must be scored."""
        return "prune" in self.method

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Config:
        """Fill what the command line left open (missing or None) with the data set's defaults."""
        given = {key: value for key, value in options.items() if value is not None}
        given.setdefault("data", "digits")
        digits = given["data"] == "digits"
        if not digits:
            given["data"] = str(Path(given["data"]).expanduser().resolve())
        given.setdefault("model", "cnn" if digits else "resnet20")
        given.setdefault("method", "detector+prune")
        given.setdefault("epochs", 120 if digits else 200)
        given.setdefault("batch_size", 32 if digits else 128)
        # The paper's .01 at batch 32, scaled linearly: it keeps the rotation per epoch the same.
        # At that, the layers of the small CNN would hardly rotate over 256 digits.
        given.setdefault("lr", (0.1 if digits else 0.01) * given["batch_size"] / 32)
        given.setdefault("weight_decay", 2e-4)
        # A mirrored digit is not that digit.
        given.setdefault("flip", not digits)
        given.setdefault("eval_every", max(1, math.ceil(given["epochs"] / 10)))
        given.setdefault("device", "cpu")
        if given["device"] == "cpu":
            given.setdefault("threads", _default_threads(given["model"]))
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: Path) -> Config:
        """Rebuild from config.json.

        Raises:
            UserError: the file at `source` does not hold a run of this version.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            odd = sorted(set(values) ^ names)
            raise UserError(f"{source}: not a configuration of this version (fields {odd})")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{source}: a setting has the wrong type ({error})") from error

    def replace(self, **changes: Any) -> Config:
        return dataclasses.replace(self, **changes)


def differences(options: dict[str, Any], stored: Config) -> list[str]:
    """Options of the command line that contradict a stored run, as 'name given (stored)'."""
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("data", "digits") != "digits":
        given["data"] = str(Path(given["data"]).expanduser().resolve())
    return changes(given, stored)


def changes(settings: dict[str, Any], stored: Config) -> list[str]:
    """Settings in which a stored run is another one, as 'name given (stored)'; None counts too."""
    values = stored.to_dict()
    return [
        f"--{key.replace('_', '-')} {value} (the run has {values[key]})"
        for key, value in settings.items()
        if key not in ENVIRONMENT and values[key] != value
    ]


def _default_threads(model: str) -> int:
    """One for the small model; else half of the processors, since the threads of one core share it.

    Threads that must wait for each other on a busy machine are worse than none: with two on two
    busy cores, ResNet-8 took seven times as long as with one.
    """
    if model == "cnn":
        return 1
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, processors // 2)


def _choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{option} must be one of {', '.join(choices)}; got {value!r}")
