"""First a part of the data, then all: is that as good as all from scratch?

    seed0/first      trained on the first part of the data, T epochs
    seed0/scratch    trained on all of it, T epochs
    seed0/warm       the same, from the weights of `first`
    seed0/shrink0.4  the same, from 0.4 of those weights and some of fresh ones

Each has the whole schedule of the learning rate to itself, and an optimizer that knows of nothing
before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.recipes import Augment
from cpfast.studies import normalisation
from cpfast.studies.document import Document
from cpfast.studies.runner import Runner
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import Study, configured, filled, needs_images, of_digits, studies
from cpfast.studies.warm_start import picture, table
from cpfast.studies.warm_start.begin import Begin, first_part, set_weights
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

FIRST, SCRATCH, WARM = "first", "scratch", "warm"
SHRINKS = (0.2, 0.4, 0.6, 0.8)
NOISE = 0.1
SHARE = 0.5
DIGITS_EPOCHS = 48
SEEDS = 5


@studies.register("warm-start", source="arXiv 1910.08475")
@dataclass(frozen=True)
class WarmStart(Study):
    """Half of the data first, then all: what is lost to training from scratch, and what mends it.

    Arms x seeds.

    Attributes:
        shrinks: what the weights of the first training are multiplied by, where they are shrunk
            and perturbed.
        noise: what fresh weights are multiplied by that are added then.
        share: of the data, that is there first.
        augment: whether images are augmented; the effect is largest where they are not.

    Raises:
        UserError: a number out of range.
    """

    shrinks: tuple[float, ...] = SHRINKS
    noise: float = NOISE
    share: float = SHARE
    augment: bool = False

    KIND: ClassVar = "warm-start"
    HEAD: ClassVar = {"shrinks": list, "noise": float, "share": float, "augment": bool}
    EXTENDS: ClassVar = {"shrinks": "--shrinks"}
    KEY: ClassVar = {"arm": (str,), "seed": (int,)}

    def __post_init__(self) -> None:
        for shrink in self.shrinks:
            if not 0 < shrink <= 1:
                raise UserError(f"--shrinks must be in (0, 1], got {shrink}")
        if not 0 <= self.noise <= 1:
            raise UserError(f"--noise must be in [0, 1], got {self.noise}")
        if not 0 < self.share < 1:
            raise UserError(f"--share must be in (0, 1), got {self.share}")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--shrinks", type=float, nargs="*", metavar="FACTOR",
            help="that the weights are shrunk by; default: "
            f"{' '.join(f'{s:g}' for s in SHRINKS)}")  # fmt: skip
        add("--noise", type=float, metavar="SHARE",
            help=f"share of fresh weights that is added; default: {NOISE}")  # fmt: skip
        add("--share", type=float, metavar="SHARE",
            help=f"of the data that is there first; default: {SHARE}")  # fmt: skip
        add("--augment", action="store_const", const=True, help="the images; default: they are not")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        needs_images(options)
        options = of_digits(filled(options, repeats=1, seeds=SEEDS), epochs=DIGITS_EPOCHS)
        own = {name: options[name] for name in cls.HEAD if options[name] is not None}
        if "shrinks" in own:
            own["shrinks"] = tuple(sorted(set(own["shrinks"])))
        return cls(*configured(options, energy=False, detect=False), **own)

    def begins(self) -> list[Begin]:
        """Of what is trained on all data, but from scratch."""
        shrunk = [Begin(f"shrink{shrink:g}", shrink, self.noise) for shrink in self.shrinks]
        return [Begin(WARM, 1.0, 0.0), *shrunk]

    def arms(self) -> list[str]:
        return [FIRST, SCRATCH, *(begin.arm for begin in self.begins())]

    def wanted(self, results: Results) -> int:
        return len(self.seeds) * len(self.arms())

    def fault(self, entry: Entry) -> str | None:
        return None if entry["arm"] in self.arms() else f"no arm {entry['arm']!r} in this study"

    def run(self, runner: Runner) -> None:
        assert isinstance(runner.data, ImageData)
        for seed in self.seeds:
            parent = runner.out / f"seed{seed}"
            part = first_part(runner.data, self.share, seed)
            self._run(runner, seed, FIRST, data=part)
            self._run(runner, seed, SCRATCH)
            for begin in self.begins():
                self._run(runner, seed, begin.arm, begin=partial(_take_over, parent, begin))

    def _run(self, runner: Runner, seed: int, arm: str, **options: Any) -> None:
        if runner.find(arm=arm, seed=seed) is not None:
            return
        first = runner.find(arm=FIRST, seed=seed)
        if "begin" in options and first is not None and first["diverged"] is not None:
            reason = "not run: the training on the first part diverged"
            runner.store({"arm": arm, **entry_of(None, seed, reason)})
            return
        folder = RunFolder(runner.out / f"seed{seed}" / arm)
        diverged = runner.train(
            self.config.replace(seed=seed), folder, f"seed {seed}, {arm}",
            actions=[] if self.augment else [Augment()], **options,
        )  # fmt: skip
        data = options.get("data", runner.data)
        entry = normalisation.tested(entry_of(folder, seed, diverged), folder, data)
        runner.store({"arm": arm, **entry})

    def label(self, entry: Entry) -> str:
        return f"{entry['arm']:<{max(map(len, self.arms()))}}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"warm-start.png": partial(picture.draw, self, results)}


def _take_over(parent: Path, begin: Begin, training: Training) -> None:
    """The weights of the first training."""
    source = RunFolder(parent / FIRST)
    state = source.checkpoint()
    if state is None:
        raise UserError(f"{source.path}: no checkpoint, with which other runs were to begin")
    set_weights(training, state["model"], begin)
