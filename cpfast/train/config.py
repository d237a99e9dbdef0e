"""One run's settings: a frozen, validated dataclass that goes to config.json and back."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import Recipe, RecipeFile, actions, recipes
from cpfast.registry import Entry, options_of
from cpfast.train import autopilot, extension, loggers, ranks
from cpfast.train.augmentations import AUGMENTATIONS
from cpfast.train.balance import CLASS_WEIGHTS
from cpfast.train.data import KINDS, datasets, is_mirrored, is_place, kind_of, parse_size
from cpfast.train.errors import UserError
from cpfast.train.models import check, check_name
from cpfast.train.presets import PRESETS, UNKNOWN
from cpfast.train.ranges import RANGES, check_choice, check_range, option_of
from cpfast.train.warp import Warp

OPTIMIZERS = ("sgd", "adamw", "rmsprop", "adagrad")
STEPS = ("eager", "compile", "graph", "compile+graph")
LABELS = ("true", "random")
SCHEDULES = ("step", "cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")

# By a setting's annotation, the types of what JSON makes of it.
_TYPES = {
    "bool": ("bool",), "str": ("str",), "int": ("int",), "float": ("int", "float"),
    "str | None": ("str", "NoneType"), "int | None": ("int", "NoneType"),
    "float | None": ("int", "float", "NoneType"),
}  # fmt: skip

# Settings that are also a recipe's, where it has an option of that name.
_OF_RECIPES = ("repeats", "keep", "anneal")
# What runs of version 0.1.0 lack, and what holds for them.
SINCE: dict[str, Any] = {
    "recipe_text": None, "watch": None, "patience": 1, "not_before": None, "momentum": 0.9,
    "warmup": 0.0, "clip": None, "label_smoothing": 0.0, "bn_momentum": None, "image_size": None,
    "augment": "paper", "mixup": 0.0, "cutmix": 0.0, "label": None, "class_weight": "none",
    "weights": None, "ema": None, "accumulate": 1,
    "save_every": 1, "limit_test": None, "extended_from": None, "log": None,
    "reference": None, "decay_power": 1.0, "warp": None, "guard": None, "guard_share": None,
}  # fmt: skip

# Where and how a run is executed or shown; these may change when it is resumed.
ENVIRONMENT = (
    "device", "threads", "step", "energy", "country", "price_kwh", "price_hour", "plot",
    "save_every", "log",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of one run. Fractions are in [0, 1], `lr` is per step.

    Attributes:
        data: one of `cpfast.train.data.datasets`, or an absolute path.
        method: what is cut once the period has ended, see `cpfast.recipes.named`.
        image_size: side, or HEIGHTxWIDTH, that the images of a folder are resized and cropped to;
            None: as they are where they are small and of one size.
        class_weight: "balanced" weighs the losses of each class by n / (C n_c).
        reference: a file of `cpfast score` on the same training data, whose losses --policy tokens
            compares with; None: it looks at the losses of the moment alone.
        weights: a safetensors file that the network begins from, where its tensors fit.
        label: the column of a table that holds its classes; None: see `cpfast.train.data.columns`.
        limit: number of training samples, of images stratified; None for all.
        repeats: augmented passes over the data in an epoch of the critical period (k).
        keep: share that pruning keeps, as the policy means it; None: what its source keeps.
        anneal: share after which all is spent again: in methods with a detector, of the epochs
            that follow the period's end (data and repeats); in method prune, of the training
            (data). None: pruning stops at .875 of the training, as InfoBatch's does, and the
            repeats stay away.
        at: epoch at which criterion "fixed" ends the period.
        watch: criteria that judge beside the driving one, without consequence: names with commas
            between them, or "all" that go with the run; None: none.
        patience: for how many judged epochs in a row a criterion's verdict must hold.
        not_before: the first epoch that is judged; None: the criterion's own.
        eval_every: epochs between two evaluations; the last epoch is always evaluated.
        detect: measure the rotation; False only for arms that do without.
        labels: "random" draws the training labels anew, by the seed: a control in which there is
            nothing to learn.
        step: how a training step is executed; "graph" replays it as a CUDA graph.
        country: ISO 3166-1 alpha-3 code whose electricity the CO2e is counted by; None: the
            world's mean.
        momentum: of sgd, Nesterov's.
        warmup: share of the training over which the learning rate rises to `lr`.
        decay_power: of that share after the warm-up, by which a cosine or a line falls: above 1
            later, and faster then.
        warp: "PASSES@EPOCHS": the schedule passes so many times as slowly in the first epochs
            (`cpfast.train.warp`); None: as it is.
        clip: the largest norm of all gradients together; None: any.
        label_smoothing: of the training's loss, and so of the scores.
        bn_momentum: of all BatchNorm layers' running statistics; None: the model's own.
        augment: how training images are, one of `cpfast.train.augmentations`.
        mixup, cutmix: alpha of each, in all epochs, on top of the recipe; 0 for none.
        ema: decay of the moving average of the weights, a step, by which the run is evaluated and
            which it keeps; None: the weights as they are.
        accumulate: batches whose gradients are added before a step.
        save_every: epochs between two checkpoints; the last epoch is always saved.
        limit_test: number of test samples, of images stratified; None for all.
        guard: points of accuracy that the saving after the period's end may cost; where it is shown
            to cost more, the run goes back to that end, and on without it (`cpfast.train.guard`).
            None: nobody looks.
        guard_share: of the training samples, held out for `guard`; None: a tenth.
        log: where the metrics go beside metrics.jsonl: names of `cpfast.train.loggers` with commas
            between them; None: nowhere.
        extended_from: what --epochs was before, and after which epoch it was raised, as "100@80",
            the first first, with commas between them; None: as the run began.
        recipe_text: the recipe's file, word for word, where it is none of the named ones: `method`
            is its name then.
        price_kwh, price_hour: what a kWh and what an hour of the machine costs, in any currency.
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
    optimizer: str = "sgd"
    schedule: str = "step"
    policy: str = "infobatch"
    keep: float | None = None
    anneal: float | None = None
    criterion: str = "slope45"
    at: int | None = None
    watch: str | None = None
    patience: int = 1
    not_before: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    step: str = "eager"
    labels: str = "true"
    detect: bool = True
    energy: bool = True
    country: str | None = None
    price_kwh: float | None = None
    price_hour: float | None = None
    plot: bool = True
    momentum: float = 0.9
    warmup: float = 0.0
    decay_power: float = 1.0
    warp: str | None = None
    clip: float | None = None
    label_smoothing: float = 0.0
    bn_momentum: float | None = None
    augment: str = "paper"
    mixup: float = 0.0
    cutmix: float = 0.0
    recipe_text: str | None = None
    image_size: str | None = None
    label: str | None = None
    class_weight: str = "none"
    weights: str | None = None
    reference: str | None = None
    ema: float | None = None
    accumulate: int = 1
    save_every: int = 1
    limit_test: int | None = None
    guard: float | None = None
    guard_share: float | None = None
    log: str | None = None
    extended_from: str | None = None

    def __post_init__(self) -> None:
        check_name(self.model)
        if self.recipe_text is None:
            check_choice("--method", self.method, tuple(recipes))
        else:
            self.recipe()
        for name, choices in _choices().items():
            check_choice(option_of(name), getattr(self, name), choices)
        for name in () if self.watch is None else self.watched or ("",):
            check_choice("--watch", name, ("all", *watchable()))
        for name in () if self.log is None else loggers.named(self.log) or ("",):
            check_choice("--log", name, tuple(loggers.loggers))
        for name in RANGES:
            check_range(name, getattr(self, name))
        if self.data in datasets:  # what lies at a path is looked at once it is loaded
            check(self.model, datasets.make(self.data).reads, self.data)
        if self.image_size is not None:
            parse_size(self.image_size)
        extension.check_form(self.extended_from)
        self._check_together()

    def _check_together(self) -> None:
        """What each allows and together is impossible."""
        if self.warmup > 0 and self.schedule == "step":
            raise UserError("--warmup goes with --schedule cosine, linear or constant; got step")
        if self.decay_power != 1 and self.schedule not in ("cosine", "linear"):
            raise UserError(
                f"--decay-power goes with --schedule cosine or linear; got {self.schedule}"
            )
        self.warped()
        self._check_guard()
        if self.criterion == "fixed":
            if self.at is None:
                raise UserError("--criterion fixed needs --at EPOCH")
            if not 1 <= self.at <= self.epochs:
                raise UserError(f"--at must be in 1 .. {self.epochs} (--epochs), got {self.at}")
        elif self.at is not None:
            raise UserError("--at goes with --criterion fixed")
        for option, epochs in (("--patience", self.patience), ("--not-before", self.not_before)):
            if epochs is not None and epochs > self.epochs:
                raise UserError(f"{option} must be at most {self.epochs} (--epochs), got {epochs}")
        if self.precision == "fp16" and self.device == "cpu":
            raise UserError("--precision fp16 needs a CUDA device; on the CPU use bf16 or fp32")
        if "graph" in self.step and self.precision == "fp16":
            raise UserError(
                f"--step {self.step}: not with --precision fp16, whose loss scale the host decides"
            )
        if "graph" in self.step and not AUGMENTATIONS[self.augment].can_capture:
            raise UserError(
                f"--step {self.step}: not with --augment {self.augment}, whose draws the host reads"
            )
        if "graph" in self.step and self.device == "cpu":
            raise UserError(
                f"--step {self.step} needs a CUDA device; on the CPU use eager or compile"
            )

    def _check_guard(self) -> None:
        if self.guard is None:
            if self.guard_share is not None:
                raise UserError("--guard-share goes with --guard")
            return
        if not self.recipe().uses_detector:
            raise UserError(
                f"--guard: --method {self.method} saves nothing because the critical period has "
                "ended, so there is nothing to guard"
            )
        if self.reference is not None:
            raise UserError(
                "--guard: not with --reference, whose losses are those of all training samples"
            )

    @property
    def step_size(self) -> int:
        """Samples of a step: those of all batches whose gradients are added."""
        return self.accumulate * self.batch_size

    @property
    def watched(self) -> tuple[str, ...]:
        """The names in ``watch``, each once."""
        names = (name.strip() for name in (self.watch or "").split(","))
        return tuple(dict.fromkeys(filter(None, names)))

    def warped(self) -> Warp:
        """How the schedule's time passes.

        Raises:
            UserError: the setting is wrong.
        """
        return Warp.parse(self.warp, self.epochs)

    @property
    def reading(self) -> dict[str, Any]:
        """What `cpfast.train.data.load` is told of the layout."""
        size = None if self.image_size is None else parse_size(self.image_size)
        return {"image_size": size, "label": self.label, "limit_test": self.limit_test}

    @property
    def passes(self) -> int:
        """k, the most passes of any epoch."""
        return max(settings.repeats for settings in self.recipe().possible())

    def mixing(self) -> tuple[tuple[str, float], ...]:
        """The actions that mix images, and their alphas."""
        return (("mixup", self.mixup), ("cutmix", self.cutmix))

    def recipe(self) -> Recipe:
        """That of the method or of the file, with those of these settings that it knows.

        Raises:
            UserError: what the file says makes no recipe.
        """
        if self.recipe_text is None:
            entry = recipes[self.method]
        else:
            try:
                file = RecipeFile.parse(self.recipe_text, f"--recipe {self.method}", self.method)
            except ValueError as error:
                raise UserError(str(error)) from error
            entry = Entry(file.name, file.factory(), file.source, file.summary)
        given = [name for name in _OF_RECIPES if name in options_of(entry.factory)]
        mixing = [(name, alpha) for name, alpha in self.mixing() if alpha > 0]
        try:
            recipe = entry.make(
                total_epochs=self.epochs, **{name: getattr(self, name) for name in given}
            )
            if not mixing:
                return recipe
            more = [actions.make(name, alpha=alpha) for name, alpha in mixing]
            return Recipe(self.epochs, [*recipe.actions, *more])
        except (TypeError, ValueError) as error:
            raise UserError(f"--method {self.method}: {error}") from error

    @classmethod
    def from_options(
        cls, options: dict[str, Any], size: int | None = None, side: int | None = None
    ) -> Config:
        """Fill what the command line left open (missing or None) by a preset, "paper" unless
        `options` has another; of a "budget", in percent, then as `autopilot` spends it.

        Args:
            size: number of training samples; None: not known yet.
            side: of images, the pixels of the shorter side; None as well.
        """
        given = {key: value for key, value in options.items() if value is not None}
        asked, budget = set(given), given.pop("budget", None)
        preset = given.pop("preset", "paper")
        check_choice("--preset", preset, tuple(PRESETS))
        given.setdefault("data", "digits")
        name = given["data"]
        own: Mapping[str, Any]
        if name in datasets:
            dataset = datasets.make(name)
            reads, own = dataset.reads, {**KINDS[dataset.reads].defaults, **dataset.defaults}
        elif is_place(name):
            given["data"] = _absolute(name)
            reads = kind_of(given["data"]) or "images"
            own = {"flip": is_mirrored(given["data"]), **KINDS[reads].defaults}
        else:
            reads = kind_of(name) or "images"
            own = {"flip": is_mirrored(name), **KINDS[reads].defaults}
        for name in ("weights", "reference"):
            if name in given:
                given[name] = _absolute(given[name], f"--{name}")
                if not Path(given[name]).is_file():
                    raise UserError(f"--{name} {given[name]}: no such file")
        if reads != "images" and given.get("augment", "none") != "none":
            raise UserError(f"--augment {given['augment']}: for images, and {name} has none")
        for option, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            check_choice(f"--{option}", given.get(option, choices[0]), choices)
        for name in ("batch_size", "epochs", "limit", "accumulate"):
            check_range(name, given.get(name))
        given = PRESETS[preset](given, own, reads=reads, size=size or UNKNOWN)
        if budget is not None:
            given = autopilot.within(given, asked, budget, side)
        given.setdefault("eval_every", max(1, math.ceil(given["epochs"] / 10)))
        given.setdefault("device", "cpu")
        if given["device"] == "cpu":
            given.setdefault("threads", _default_threads(given["model"]))
        else:
            given.setdefault("precision", "bf16")
            kind = AUGMENTATIONS.get(given.get("augment", "none"))
            eager = given["precision"] == "fp16" or ranks.is_one_of_several()
            eager |= kind is not None and not kind.can_capture
            given.setdefault("step", "eager" if eager else "graph")
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
        values = {**SINCE, **values}
        if set(values) != names:
            odd = sorted(set(values) ^ names)
            raise UserError(f"{source}: not a configuration of this version (fields {odd})")
        for field in dataclasses.fields(cls):
            value = values[field.name]
            if type(value).__name__ not in _TYPES[str(field.type)]:
                raise UserError(
                    f"{source}: a setting has the wrong type ({field.name}: {value!r}, "
                    f"expected {field.type})"
                )
        return cls(**values)

    def replace(self, **changes: Any) -> Config:
        return dataclasses.replace(self, **changes)


def _choices() -> dict[str, tuple[str, ...]]:
    """Of the settings that are names; registries are asked when they are complete."""
    return {
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "policy": tuple(policies),
        "criterion": tuple(criteria),
        "precision": PRECISIONS,
        "step": STEPS,
        "labels": LABELS,
        "class_weight": CLASS_WEIGHTS,
        "augment": tuple(AUGMENTATIONS),
    }


def watchable() -> tuple[str, ...]:
    """The criteria that need no option: "fixed" has nothing to watch."""
    return tuple(
        name for name, entry in criteria.items() if not any(options_of(entry.factory).values())
    )


def differences(options: dict[str, Any], stored: Config) -> list[str]:
    """Options of the command line that contradict a stored run, as 'name given (stored)'."""
    given = {key: value for key, value in options.items() if value is not None}
    if is_place(given.get("data", "digits")):
        given["data"] = _absolute(given["data"])
    for name in ("weights", "reference"):
        if name in given:
            given[name] = _absolute(given[name], f"--{name}")
    return changes(given, stored)


def changes(settings: dict[str, Any], stored: Config) -> list[str]:
    """Settings in which a stored run is another one, as 'name given (stored)'; None counts too."""
    values = stored.to_dict()
    return [
        f"{option_of(key)} {value} (the run has {values[key]})"
        if key != "recipe_text"
        else "--recipe (the run has another)"
        for key, value in settings.items()
        if key not in ENVIRONMENT and values[key] != value
    ]


def _absolute(path: str, option: str = "--data") -> str:
    if not path:
        raise UserError(f"{option}: an empty name")
    try:
        return str(Path(path).expanduser().resolve())
    except (RuntimeError, OSError, ValueError) as error:  # an unknown user, a loop of links
        raise UserError(f"{option} {path}: {error}") from error


def _default_threads(model: str) -> int:
    """One for the small model; else half of the processors, since the threads of one core share it.

    Threads that must wait for each other on a busy machine are worse than none: with two on two
    busy cores, ResNet-8 took seven times as long as with one.
    """
    if model == "cnn":
        return 1
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, processors // 2 // ranks.on_this_machine())
