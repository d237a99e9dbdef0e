"""Weight decay, or augmentation, in a window of epochs alone: until t, from t on, for a while.

seed0/always          both throughout; forked into what is on until E,
seed0/decay-0-E       weight decay in epochs 0 to E, augmentation throughout
seed0/decay-0-0       never any decay; forked into what is on from B on
seed0/decay-B-T, decay-B-E
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.recipes import Action, Augment, WeightDecay, Window
from cpfast.studies import normalisation
from cpfast.studies.document import Document
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
from cpfast.studies.window import picture, table
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

# What turns each of them off.
OFF: dict[str, Callable[..., Action]] = {"decay": WeightDecay, "augmentation": Augment}
ALWAYS = "always"
DECAY = 5e-4  # the source's
DIGITS_EPOCHS = 40
Span = tuple[int, int]  # the epochs at which it is turned on and off


@studies.register("window", source="arXiv 1905.13277")
@dataclass(frozen=True)
class RegularisationWindow(Study):
    """Weight decay and augmentation only until an epoch, only from it on, only for a while.

    Regularisers x windows x seeds, beside always and never.

    Attributes:
        regularisers: of `OFF`; the others are on throughout.
        switches: epochs until which, and from which, they are on.
        length: epochs of the windows that begin with the training and at each of the switches.

    Raises:
        UserError: an unknown regulariser, or an epoch outside of the training.
    """

    regularisers: tuple[str, ...]
    switches: tuple[int, ...]
    length: int

    KIND: ClassVar = "window"
    HEAD: ClassVar = {"regularisers": list, "switches": list, "length": int}
    KEY: ClassVar = {"regulariser": (str,), "begin": (int,), "end": (int,), "seed": (int,)}

    def __post_init__(self) -> None:
        for name in self.regularisers:
            if name not in OFF:
                raise UserError(f"--regularisers: must be of {', '.join(OFF)}; got {name!r}")
        total = self.config.epochs
        for switch in self.switches:
            if not 0 < switch < total:
                raise UserError(f"--switches must be in 1 .. {total - 1}, got {switch}")
        if not 0 < self.length < total:
            raise UserError(f"--window must be in 1 .. {total - 1}, got {self.length}")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--regularisers", metavar="NAME[,NAME]",
            help=f"what is on for a part of the training; default: {','.join(OFF)}")  # fmt: skip
        add("--switches", type=int, nargs="+", metavar="EPOCH",
            help="until which, and from which on, it is on; default: T/8 T/4 T/2 3T/4, with T = "
            "--epochs")  # fmt: skip
        add("--window", type=int, metavar="EPOCHS",
            help="how long it is on from each of these; default: T/4")  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        needs_images(options)
        options = of_digits(filled(options, repeats=1, weight_decay=DECAY), epochs=DIGITS_EPOCHS)
        config, seeds = configured(options, energy=False, detect=False)
        if config.epochs < 2:
            raise UserError("--epochs must be at least 2: there is no window in less")
        text, switches, length = (options[name] for name in ("regularisers", "switches", "window"))
        names = tuple(OFF) if text is None else named("--regularisers", text)
        if switches is None:
            shares = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
            switches = [min(config.epochs - 1, math.ceil(s * config.epochs)) for s in shares]
        if length is None:
            length = math.ceil(config.epochs / 4)
        return cls(config, seeds, names, tuple(sorted(set(switches))), length)

    # --- when it is on ----------------------------------------------------------------------

    def until(self) -> list[Span]:
        return [(0, switch) for switch in self.switches]

    def since(self) -> list[Span]:
        return [(switch, self.config.epochs) for switch in self.switches]

    def windows(self) -> list[Span]:
        begins = [b for b in (0, *self.switches) if b + self.length <= self.config.epochs]
        return [(begin, begin + self.length) for begin in begins]

    def spans(self) -> list[Span]:
        """All but always."""
        return sorted({(0, 0), *self.until(), *self.since(), *self.windows()})

    def always(self) -> dict[str, Any]:
        """What identifies those of all regularisers."""
        return {"regulariser": ALWAYS, "begin": 0, "end": self.config.epochs}

    def wanted(self, results: Results) -> int:
        return len(self.seeds) * (len(self.regularisers) * len(self.spans()) + 1)

    def fault(self, entry: Entry) -> str | None:
        name, span = entry["regulariser"], (entry["begin"], entry["end"])
        is_known = name in self.regularisers and span in self.spans()
        if is_known or (name, *span) == tuple(self.always().values()):
            return None
        return f"no {name!r} in epochs {span} in this study"

    # --- the runs ---------------------------------------------------------------------------

    def run(self, runner: Runner) -> None:
        for seed in self.seeds:
            self._run(runner, seed, ALWAYS, (0, self.config.epochs), self.regularisers)
            for name in self.regularisers:
                for span in self.spans():  # never is the first
                    self._run(runner, seed, name, span, [name])

    def _run(self, runner: Runner, seed: int, name: str, span: Span, into: Sequence[str]) -> None:
        """One run; always and never are forked into those that begin as they do."""
        key = {"regulariser": name, "begin": span[0], "end": span[1], "seed": seed}
        if runner.find(**key) is not None:
            return
        parent, config = runner.out / f"seed{seed}", self.config.replace(seed=seed)
        folder, fork = _folder(parent, name, span), _forked_at(span)
        if name != ALWAYS and fork > 0 and not folder.is_run():
            begins_as = self.always() if span[0] == 0 else {**key, "begin": 0, "end": 0}
            root = runner.find(**{**begins_as, "seed": seed})
            check_branched(folder, was_due=root is None or root["epochs"] >= fork)
            reason = f"not run: what it begins as diverged before epoch {fork}"
            runner.store({**key, **entry_of(None, seed, reason)})
            return
        branches = [
            Branch(_folder(parent, other, later), config, at(_forked_at(later)))
            for other in into
            for later in self.spans()
            if later != (0, 0) and (name == ALWAYS or span == (0, 0))
            and (later[0] == 0) == (name == ALWAYS)
        ]  # fmt: skip
        diverged = runner.train(
            config, folder, f"seed {seed}, {name} in epochs {span[0]} to {span[1]}",
            branches=branches, actions=self.off(name, span),
        )  # fmt: skip
        entry = normalisation.tested(entry_of(folder, seed, diverged), folder, runner.data)
        runner.store({**key, **entry})

    def off(self, name: str, span: Span) -> list[Action]:
        """What turns it off outside of its epochs."""
        if name == ALWAYS:
            return []
        total = self.config.epochs
        outside = ((0, span[0]), (span[1], total))
        return [OFF[name](window=Window.between(*o, total)) for o in outside if o[0] < o[1]]

    # --- what is shown ----------------------------------------------------------------------

    def label(self, entry: Entry) -> str:
        return f"{entry['regulariser']:<12} in epochs {entry['begin']:>3} to {entry['end']:>3}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"window.png": partial(picture.draw, self, results)}


def _forked_at(span: Span) -> int:
    """The epoch up to which a run is as always, or as never."""
    begin, end = span
    return begin if begin > 0 else end


def _folder(parent: Path, name: str, span: Span) -> RunFolder:
    return RunFolder(parent / (name if name == ALWAYS else f"{name}-{span[0]}-{span[1]}"))
