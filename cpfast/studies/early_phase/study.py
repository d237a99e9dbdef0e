"""What happens in the first iterations, and which of it has to stay for what follows?

    seed0/none         undisturbed; forked after some early epochs into
    seed0/layer-E      what goes on from epoch E with its weights shuffled, and so on
    seed0/blur-E       or with the weights of as many epochs of another task, which are those of
    seed0/pretrained/blur, forked into seed0/pretrained/blur-E

The beginning of `none` is then repeated, and measured before each step.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import cpfast
from cpfast.studies import normalisation
from cpfast.studies.document import Document
from cpfast.studies.early_phase import picture, table
from cpfast.studies.early_phase.perturb import PERTURBATIONS, perturbed
from cpfast.studies.early_phase.pretrain import (
    INITIAL,
    PRETRAININGS,
    begun_with,
    check_square,
    head_of,
)
from cpfast.studies.early_phase.trace import NAMES, trace
from cpfast.studies.runner import Branch, Runner, at, check_branched
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import (
    Study,
    configured,
    filled,
    named,
    needs_images,
    of_digits,
    studies,
)
from cpfast.train import models
from cpfast.train.config import Config
from cpfast.train.data import Data, ImageData
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import Change, RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

NONE = "none"
CHANGES = (*PERTURBATIONS, INITIAL, *PRETRAININGS)
PRETRAINED = "pretrained"
ITERATIONS = 80
DIGITS_EPOCHS = 40


@studies.register("early-phase", source="arXiv 2002.10365")
@dataclass(frozen=True)
class EarlyPhase(Study):
    """The first iterations, measured one by one; and early weights perturbed and trained on.

    Perturbations x epochs x seeds, beside the undisturbed run.

    Attributes:
        perturbations: of `CHANGES`.
        rewinds: epochs after which weights are perturbed.
        iterations: how many are measured.

    Raises:
        UserError: an unknown perturbation, or a number out of range.
    """

    perturbations: tuple[str, ...]
    rewinds: tuple[int, ...]
    iterations: int = ITERATIONS

    KIND: ClassVar = "early-phase"
    HEAD: ClassVar = {"perturbations": list, "rewinds": list, "iterations": int}
    KEY: ClassVar = {"perturbation": (str,), "epoch": (int,), "seed": (int,)}
    OWN: ClassVar = {"trace": (dict, type(None))}

    def __post_init__(self) -> None:
        for name in self.perturbations:
            if name not in CHANGES:
                known = ", ".join(CHANGES)
                raise UserError(f"--perturbations: must be of {known}; got {name!r}")
        for epoch in self.rewinds:
            if not 1 <= epoch < self.config.epochs:
                raise UserError(f"--rewinds must be in 1 .. {self.config.epochs - 1}, got {epoch}")
        if self.iterations < 1:
            raise UserError(f"--iterations must be at least 1, got {self.iterations}")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--perturbations", metavar="NAME[,NAME]",
            help="of early weights, or what stands in for them: the initial ones, or those of as "
            "many epochs on blurred images, or of telling how images are turned; default: "
            f"{','.join(CHANGES)}")  # fmt: skip
        add("--rewinds", type=int, nargs="+", metavar="EPOCH",
            help="epochs after which weights are perturbed; default: 1 T/16 T/4, with T = "
            "--epochs")  # fmt: skip
        add(
            "--iterations",
            type=int,
            metavar="N",
            help=f"how many are measured; default: {ITERATIONS}",
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        needs_images(options)
        options = of_digits(filled(options, repeats=1), epochs=DIGITS_EPOCHS)
        config, seeds = configured(options, energy=False, detect=False)
        total, text, rewinds = config.epochs, options["perturbations"], options["rewinds"]
        if rewinds is None:
            rewinds = [1, math.ceil(total / 16), math.ceil(total / 4)]
        return cls(
            config, seeds,
            CHANGES if text is None else named("--perturbations", text),
            tuple(sorted(set(rewinds))),
            ITERATIONS if options["iterations"] is None else options["iterations"],
        )  # fmt: skip

    def wanted(self, results: Results) -> int:
        return len(self.seeds) * (1 + len(self.perturbations) * len(self.rewinds))

    def fault(self, entry: Entry) -> str | None:
        name, epoch, found = entry["perturbation"], entry["epoch"], entry["trace"]
        is_perturbed = name in self.perturbations and epoch in self.rewinds
        if not is_perturbed and (name, epoch) != (NONE, 0):
            return f"no {name!r} after epoch {epoch} in this study"
        if (found is None) != (name != NONE or entry["diverged"] is not None):
            return f"'trace' is {found}, of {name}"
        if found is not None and not (
            set(found) == set(NAMES) and len({len(column) for column in found.values()}) == 1
        ):
            return "'trace' lacks something"
        return None

    def check(self, data: Data) -> None:
        super().check(data)
        assert isinstance(data, ImageData)
        if any(PRETRAININGS[name].has_own_classes for name in self.pretrainings()):
            check_square(data)

    def pretrainings(self) -> list[str]:
        return [name for name in self.perturbations if name in PRETRAININGS]

    def run(self, runner: Runner) -> None:
        for seed in self.seeds:
            if runner.find(perturbation=NONE, seed=seed) is None:
                for name in self.pretrainings():
                    self._pretrain(runner, seed, name)
            self._run_undisturbed(runner, seed)
            for name in self.perturbations:
                for epoch in self.rewinds:
                    self._run_perturbed(runner, seed, name, epoch)

    def _pretrain(self, runner: Runner, seed: int, name: str) -> None:
        """Keeps what it has become after each of `rewinds`, unless it diverges before."""
        assert isinstance(runner.data, ImageData)
        parent, task = runner.out / f"seed{seed}" / PRETRAINED, PRETRAININGS[name]
        config = task.configured(self.config.replace(seed=seed))
        runner.train(
            config, RunFolder(parent / name), f"seed {seed}, pre-training: {name}",
            data=task.shown(runner.data, seed), until=at(max(self.rewinds)),
            branches=[Branch(RunFolder(parent / f"{name}-{epoch}"), config, at(epoch))
                      for epoch in self.rewinds],
        )  # fmt: skip

    def _changes(self, runner: Runner, seed: int) -> Callable[[str, int], Change | None]:
        """What makes a run's state that of a perturbation, by its name and epoch; None where a
        pre-training did not get there."""
        assert isinstance(runner.data, ImageData)
        config, data = self.config.replace(seed=seed), runner.data
        names, head = _weights(config, data), head_of(config, data)
        initial = Training(config, data.to(torch.device(config.device))).model.state_dict()
        initial = {name: value.clone() for name, value in initial.items()}

        def change(name: str, epoch: int) -> Change | None:
            if name in PERTURBATIONS:
                return partial(perturbed, name=name, weights=names, seed=seed)
            if name == INITIAL:
                return partial(begun_with, weights=initial)
            folder = RunFolder(runner.out / f"seed{seed}" / PRETRAINED / f"{name}-{epoch}")
            state = folder.checkpoint() if folder.is_run() else None
            if state is None:
                return None
            found = dict(state["model"])
            if PRETRAININGS[name].has_own_classes:
                found |= {key: initial[key] for key in head}
            return partial(begun_with, weights=found)

        return change

    def _run_undisturbed(self, runner: Runner, seed: int) -> None:
        key = {"perturbation": NONE, "epoch": 0, "seed": seed}
        if runner.find(**key) is not None:
            return
        assert isinstance(runner.data, ImageData)
        config, parent = self.config.replace(seed=seed), runner.out / f"seed{seed}"
        change = self._changes(runner, seed)
        branches = [
            Branch(RunFolder(parent / f"{name}-{epoch}"), config, at(epoch), made)
            for name in self.perturbations
            for epoch in self.rewinds
            if (made := change(name, epoch)) is not None
        ]
        folder = RunFolder(parent / NONE)
        diverged = runner.train(config, folder, f"seed {seed}, undisturbed", branches=branches)
        found = None
        if diverged is None:
            state = folder.checkpoint()
            assert state is not None
            found = trace(config, runner.data, state["model"], self.iterations)
        self._store(runner, {**key, "trace": found}, folder, diverged)

    def _run_perturbed(self, runner: Runner, seed: int, name: str, epoch: int) -> None:
        key = {"perturbation": name, "epoch": epoch, "seed": seed}
        if runner.find(**key) is not None:
            return
        folder = RunFolder(runner.out / f"seed{seed}" / f"{name}-{epoch}")
        if not folder.is_run():
            none = runner.find(perturbation=NONE, seed=seed)
            reason = f"not run: the undisturbed run diverged before epoch {epoch}"
            own = RunFolder(runner.out / f"seed{seed}" / PRETRAINED / f"{name}-{epoch}")
            if name in PRETRAININGS and not own.is_run():
                reason = f"not run: its pre-training diverged before epoch {epoch}"
            else:
                check_branched(folder, was_due=none is None or none["epochs"] >= epoch)
            runner.store({**key, "trace": None, **entry_of(None, seed, reason)})
            return
        label = f"seed {seed}, {name} after epoch {epoch}"
        diverged = runner.train(self.config.replace(seed=seed), folder, label)
        self._store(runner, {**key, "trace": None}, folder, diverged)

    def _store(
        self, runner: Runner, own: dict[str, Any], folder: RunFolder, diverged: str | None
    ) -> None:
        entry = entry_of(folder, own["seed"], diverged)
        runner.store({**own, **normalisation.tested(entry, folder, runner.data)})

    def label(self, entry: Entry) -> str:
        return f"{entry['perturbation']:<10} after epoch {entry['epoch']:>3}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"early-phase.png": partial(picture.draw, self, results)}


def _weights(config: Config, data: ImageData) -> list[str]:
    """The names of what is perturbed: the weights of layers."""
    model = models.build(config.model, data.shape, data.outputs, config.seed)
    return list(cpfast.LayerRotation(model).names)
