"""A deficit in what is shown, for a while: does it leave anything, and does it matter when?

Clean training, a deficit from epoch `begin` to `end`, then T epochs of clean training again.

    seed0/none            clean; forked into the deficits that begin later,
    seed0/none-E          and into the controls: clean training of E + T epochs
    seed0/blur-from-B     blurred from epoch B on; forked, where the deficit ends,
    seed0/blur-B-E        into what is clean again

The last half of the T epochs is trained at a tenth of the learning rate, in all of them; before,
the rate is constant by default, so that a late end of the deficit meets no lower rate than an early
one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.recipes import LearningRate, Window
from cpfast.studies import normalisation
from cpfast.studies.deficit import picture, table
from cpfast.studies.deficit.damage import CLEAN
from cpfast.studies.deficits import DEFICITS
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
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError
from cpfast.train.runfolder import Change, RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

DIGITS_EPOCHS = 28
Key = dict[str, Any]  # what identifies an entry


@studies.register("deficit", source="arXiv 1711.08856")
@dataclass(frozen=True)
class Deficit(Study):
    """Blur, flips, wrong names or noise for a while: when do they do lasting damage?

    Deficits x (begin, end) x seeds, and clean training of as many epochs beside each.

    Attributes:
        deficits: of `DEFICITS`.
        removals: epochs at which deficits end that were there from the beginning.
        onsets: epochs at which deficits begin that last for `window` epochs.

    Raises:
        UserError: an unknown deficit, or an epoch out of range.
    """

    deficits: tuple[str, ...]
    removals: tuple[int, ...]
    onsets: tuple[int, ...]
    window: int

    KIND: ClassVar = "deficit"
    HEAD: ClassVar = {"deficits": list, "removals": list, "onsets": list, "window": int}
    KEY: ClassVar = {"deficit": (str,), "begin": (int,), "end": (int,), "seed": (int,)}

    def __post_init__(self) -> None:
        for name in self.deficits:
            if name not in DEFICITS:
                raise UserError(f"--deficits: must be of {', '.join(DEFICITS)}; got {name!r}")
        for option, least, epochs in (
            ("--removals", 1, self.removals), ("--onsets", 0, self.onsets),
            ("--window", 1, (self.window,)),
        ):  # fmt: skip
            for epoch in epochs:
                if epoch < least:
                    raise UserError(f"{option} must be at least {least}, got {epoch}")
        if not self.spans():
            raise UserError("--removals, --onsets: no epoch at all")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--deficits", metavar="NAME[,NAME]",
            help=f"of the training data; default: {','.join(DEFICITS)}")  # fmt: skip
        add("--removals", type=int, nargs="*", metavar="EPOCH",
            help="ends of deficits that begin with the training; default: T/4 T/2 T, with T = "
            "--epochs, those of the clean training that follows")  # fmt: skip
        add("--onsets", type=int, nargs="*", metavar="EPOCH",
            help="beginnings of deficits of --window epochs; default: 0 T/2 T")  # fmt: skip
        add("--window", type=int, metavar="EPOCHS", help="how long those last; default: T/2")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        needs_images(options)
        options = filled(options, repeats=1, schedule="constant")
        options = of_digits(options, epochs=DIGITS_EPOCHS)
        config, seeds = configured(options, energy=False, detect=False)
        total, half, text = config.epochs, math.ceil(config.epochs / 2), options["deficits"]
        names = tuple(DEFICITS) if text is None else named("--deficits", text)
        removals, onsets, window = (options[name] for name in ("removals", "onsets", "window"))
        return cls(
            config, seeds, names,
            _sorted((math.ceil(total / 4), half, total) if removals is None else removals),
            _sorted((0, half, total) if onsets is None else onsets),
            half if window is None else window,
        )  # fmt: skip

    def spans(self) -> list[tuple[int, int]]:
        """From when to when there is a deficit."""
        return sorted({(0, end) for end in self.removals} | set(self.windows()))

    def windows(self) -> list[tuple[int, int]]:
        return [(begin, begin + self.window) for begin in self.onsets]

    def ends(self) -> list[int]:
        return sorted({end for _, end in self.spans()})

    def configured(self, seed: int) -> Config:
        """The settings of all runs: the longest's, evaluated where any of them ends."""
        lengths = [end + self.config.epochs for end in self.ends()]
        return self.config.replace(seed=seed, epochs=max(lengths), eval_every=math.gcd(*lengths))

    def annealed(self, end: int) -> int:
        """The epoch from which the rate is a tenth, in what is clean from epoch `end` on."""
        return end + math.ceil(self.config.epochs / 2)

    def wanted(self, results: Results) -> int:
        return len(self.seeds) * (len(self.deficits) * len(self.spans()) + len(self.ends()))

    def fault(self, entry: Entry) -> str | None:
        span = (entry["begin"], entry["end"])
        if entry["deficit"] == CLEAN:
            known = span[0] == span[1] and span[1] in self.ends()
        else:
            known = entry["deficit"] in self.deficits and span in self.spans()
        return None if known else f"no deficit {entry['deficit']!r} of epochs {span} in this study"

    # --- the runs ---------------------------------------------------------------------------

    def run(self, runner: Runner) -> None:
        assert isinstance(runner.data, ImageData)
        for seed in self.seeds:
            altered = {name: DEFICITS[name](runner.data, seed) for name in self.deficits}
            self._run_clean(runner, seed, altered)
            for name, data in altered.items():
                for begin in sorted({begin for begin, _ in self.spans()}):
                    self._run_deficit(runner, seed, name, data, begin)

    def _run_clean(self, runner: Runner, seed: int, altered: Mapping[str, ImageData]) -> None:
        ends = self.ends()
        keys: list[Key]
        keys = [{"deficit": CLEAN, "begin": end, "end": end, "seed": seed} for end in ends]
        if all(runner.find(**key) for key in keys):
            return
        parent, config = runner.out / f"seed{seed}", self.configured(seed)
        branches = [
            Branch(_segment(parent, name, begin), config, at(begin), _shown(data))
            for name, data in altered.items()
            for begin in {begin for begin, _ in self.spans() if begin > 0}
        ]
        branches += [
            Branch(_folder(parent, key), config, at(self.annealed(key["end"]))) for key in keys
        ]
        last = max(self.annealed(ends[-1]), *self.onsets, 0)
        diverged = runner.train(
            config, RunFolder(parent / CLEAN), f"seed {seed}, clean", branches=branches,
            until=at(last),
        )  # fmt: skip
        for key in keys:
            self._finish(runner, key, diverged)

    def _run_deficit(
        self, runner: Runner, seed: int, name: str, data: ImageData, begin: int
    ) -> None:
        """One that begins at `begin`, and what follows each of its ends."""
        ends = [end for first, end in self.spans() if first == begin]
        keys: list[Key]
        keys = [{"deficit": name, "begin": begin, "end": end, "seed": seed} for end in ends]
        if all(runner.find(**key) for key in keys):
            return
        assert isinstance(runner.data, ImageData)
        parent, config = runner.out / f"seed{seed}", self.configured(seed)
        segment, diverged = _segment(parent, name, begin), None
        if begin == 0 or segment.is_run():
            branches = [
                Branch(_folder(parent, key), config, at(key["end"]), _shown(runner.data))
                for key in keys
            ]
            label = f"seed {seed}, {name} from epoch {begin}"
            diverged = runner.train(
                config, segment, label, branches=branches, until=at(max(ends)), data=data
            )
        else:
            clean = runner.find(deficit=CLEAN, begin=max(self.ends()), seed=seed)
            check_branched(segment, was_due=clean is not None and clean["epochs"] >= begin)
            diverged = f"clean training diverged before epoch {begin}"
        for key in keys:
            self._finish(runner, key, diverged)

    def _finish(self, runner: Runner, key: Key, diverged: str | None) -> None:
        """Go on cleanly for T epochs after the end, if what came before has got there."""
        if runner.find(**key) is not None:
            return
        seed, end, folder = key["seed"], key["end"], _folder(runner.out / f"seed{key['seed']}", key)
        if not folder.is_run():
            check_branched(folder, was_due=diverged is None)
            runner.store({**key, **entry_of(None, seed, f"not run: {diverged}")})
            return
        config, label = self.configured(seed), f"seed {seed}, clean after {key['deficit']}, {end}"
        window = Window.between(self.annealed(end), config.epochs, config.epochs)
        diverged = runner.train(
            config, folder, label, until=at(end + self.config.epochs),
            actions=[LearningRate(window=window)],
        )  # fmt: skip
        entry = normalisation.tested(entry_of(folder, seed, diverged), folder, runner.data)
        runner.store({**key, **entry})

    # --- what is shown ----------------------------------------------------------------------

    def label(self, entry: Entry) -> str:
        return f"{entry['deficit']:<11} in epochs {entry['begin']:>3} to {entry['end']:>3}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"deficit.png": partial(picture.draw, self, results)}


def _sorted(epochs: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(epochs)))


def _folder(parent: Path, key: Key) -> RunFolder:
    begin = "" if key["deficit"] == CLEAN else f"{key['begin']}-"
    return RunFolder(parent / f"{key['deficit']}-{begin}{key['end']}")


def _segment(parent: Path, deficit: str, begin: int) -> RunFolder:
    return RunFolder(parent / f"{deficit}-from-{begin}")


def _shown(data: ImageData) -> Change:
    """Has a fork go on with these data."""
    return lambda state: {**state, "data": data.fingerprint()}
