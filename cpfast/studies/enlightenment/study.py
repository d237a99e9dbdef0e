"""Other training data until accuracy is half way: the strategies of an "enlightenment period".

    seed0/ordinary        no mixup, no sample left out; forked into
    seed0/pause-0-L       mixup from epoch L on,
    seed0/removal-1-L     the samples of the highest loss left out until epoch L, with L the longest
    seed0/random-1-L      period, and as many at random; these two are forked into shorter ones,
    seed0/removal-E-T/2   and as long a period at the end of the first half
    seed0/mixup           mixup throughout; forked into
    seed0/pause-E-T/2     none, or
    seed0/boost-E-T/2     of a larger alpha, in as long a period there
    seed0/boost-0-L       a larger alpha until epoch L; forked into shorter ones

`ordinary` and `mixup` are then repeated, and the order of their outputs is measured on the way.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.recipes import Action, Mixup, Prune, Window
from cpfast.studies import normalisation
from cpfast.studies.document import Document
from cpfast.studies.enlightenment import picture, table
from cpfast.studies.enlightenment.arms import (
    BOOST,
    FIRST,
    MIXUP,
    ORDINARY,
    OTHERWISE,
    PAUSE,
    RANDOM,
    REMOVAL,
    STRATEGIES,
    Run,
    early,
    late,
)
from cpfast.studies.enlightenment.order import NAMES, trace
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
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

# The paper's values could not be read; of the recipes and of the policy.
ALPHA, ALPHA_BOOST, REMOVED = 0.2, 0.8, 0.1
SHARES = (1 / 20, 1 / 8, 1 / 4, 1 / 2)  # of the training: periods
DIGITS_EPOCHS = 32


@studies.register("enlightenment", source="arXiv 2504.01737")
@dataclass(frozen=True)
class Enlightenment(Study):
    """No mixup, more of it, or no samples of high loss, until the outputs are ordered: which helps?

    Strategies x lengths of the period x (at the beginning, later) x seeds, beside mixup throughout,
    no mixup, and as many samples left out at random.

    Attributes:
        strategies: of `STRATEGIES`.
        lengths: of the period, in epochs.
        alpha: of mixup's Beta distribution, outside of the period.
        boost: alpha in it.
        removed: share of the training samples that are left out in it.

    Raises:
        UserError: an unknown strategy, a length outside of the training, a number out of range.
    """

    strategies: tuple[str, ...]
    lengths: tuple[int, ...]
    alpha: float = ALPHA
    boost: float = ALPHA_BOOST
    removed: float = REMOVED

    KIND: ClassVar = "enlightenment"
    HEAD: ClassVar = {
        "strategies": list, "lengths": list, "alpha": float, "boost": float, "removed": float
    }  # fmt: skip
    KEY: ClassVar = {"arm": (str,), "begin": (int,), "end": (int,), "seed": (int,)}
    OWN: ClassVar = {"trace": (dict, type(None))}

    def __post_init__(self) -> None:
        for name in self.strategies:
            if name not in STRATEGIES:
                known = ", ".join(STRATEGIES)
                raise UserError(f"--strategies: must be of {known}; got {name!r}")
        total = self.config.epochs
        for length in self.lengths:
            if not 0 < length < total:
                raise UserError(f"--lengths must be in 1 .. {total - 1}, got {length}")
        for arm in self.arms():
            if not self.lengths_of(arm):
                raise UserError(
                    f"--lengths {' '.join(map(str, self.lengths))}: {arm} needs one of "
                    f"{FIRST[arm] + 1} or more epochs, for by the first it has no losses to go by"
                )
        if not 0 < self.alpha < math.inf:
            raise UserError(f"--alpha must be positive, got {self.alpha}")
        if not self.alpha < self.boost < math.inf:
            raise UserError(f"--boost must be above --alpha, {self.alpha:g}, got {self.boost}")
        if not 0 < self.removed < 1:
            raise UserError(f"--removed must be in (0, 1), got {self.removed}")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--strategies", metavar="NAME[,NAME]",
            help=f"what is other in the period; default: {','.join(STRATEGIES)}")  # fmt: skip
        add("--lengths", type=int, nargs="+", metavar="EPOCHS",
            help="of the period; default: T/20 T/8 T/4 T/2, with T = --epochs")  # fmt: skip
        add("--alpha", type=float, metavar="ALPHA", help=f"of mixup; default: {ALPHA}")
        add(
            "--boost",
            type=float,
            metavar="ALPHA",
            help=f"alpha in the period; default: {ALPHA_BOOST}",
        )
        add("--removed", type=float, metavar="SHARE",
            help=f"share of the samples left out in the period; default: {REMOVED}")  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        needs_images(options)
        options = of_digits(filled(options, repeats=1), epochs=DIGITS_EPOCHS)
        # which notes losses in all runs, and leaves out samples where a recipe says so
        config, seeds = configured(options, energy=False, detect=False, policy="high_loss_removal")
        if config.epochs < 2:
            raise UserError("--epochs must be at least 2: there is no period in less")
        if options.get("eval_every") is None:  # the way there is traced
            config = config.replace(eval_every=config.epochs)
        text, lengths = options["strategies"], options["lengths"]
        if lengths is None:
            lengths = [math.ceil(share * config.epochs) for share in SHARES]
        own = {name: options[name] for name in ("alpha", "boost", "removed")}
        return cls(
            config, seeds,
            STRATEGIES if text is None else named("--strategies", text),
            tuple(sorted(set(lengths))),
            **{name: value for name, value in own.items() if value is not None},
        )  # fmt: skip

    # --- what there is ----------------------------------------------------------------------

    def arms(self) -> list[str]:
        """Of the periods."""
        return [*self.strategies, *([RANDOM] if REMOVAL in self.strategies else [])]

    def controls(self) -> list[Run]:
        """Ordinary training, and mixup where there is any."""
        return [Run(ORDINARY), *([Run(MIXUP)] if {PAUSE, BOOST} & set(self.strategies) else [])]

    def lengths_of(self, arm: str) -> list[int]:
        return [length for length in self.lengths if length > FIRST[arm]]

    def late_of(self, arm: str) -> list[int]:
        """The lengths that leave room for as long a period after them, in half of the training."""
        if arm == RANDOM:
            return []
        return [length for length in self.lengths_of(arm) if 2 * length <= self.config.epochs // 2]

    def runs(self) -> list[Run]:
        """In an order in which each comes after the one that it begins as."""
        runs = self.controls()
        for arm in self.arms():
            runs += [early(arm, length) for length in self.lengths_of(arm)[::-1]]
            runs += [late(arm, length, self.config.epochs) for length in self.late_of(arm)]
        return runs

    def begins_as(self, run: Run) -> tuple[Run, int] | None:
        """The run that it is forked from, and after which epoch; None from scratch."""
        if run.arm not in FIRST:
            return None
        if run.is_late:
            return Run(OTHERWISE[run.arm]), run.begin
        if run.arm == PAUSE:
            return Run(ORDINARY), run.end
        if run.end < self.lengths[-1]:
            return run._replace(end=self.lengths[-1]), run.end
        return (Run(OTHERWISE[run.arm]), run.begin) if run.begin > 0 else None

    def actions(self, run: Run, train_size: int) -> list[Action]:
        """Beyond the recipe's."""
        mixup: list[Action] = [Mixup(self.alpha)]
        if run.arm not in FIRST:
            return mixup if run.arm == MIXUP else []
        window = Window.between(run.begin, run.end, self.config.epochs)
        if run.arm in (PAUSE, BOOST):
            return [*mixup, Mixup(self.boost if run.arm == BOOST else 0.0, window)]
        # Half a sample more, lest rounding loses one: random keeps as many to the sample.
        kept = train_size - self.count_removed(train_size)
        keep = 1 - self.removed if run.arm == REMOVAL else (kept + 0.5) / train_size
        return [Prune(keep, window)]

    def count_removed(self, train_size: int) -> int:
        """How many samples an epoch of the period goes without."""
        return int((1 - (1 - self.removed)) * train_size)

    def configured(self, run: Run, seed: int) -> Config:
        policy = "random" if run.arm == RANDOM else self.config.policy
        return self.config.replace(seed=seed, policy=policy)

    def wanted(self, results: Results) -> int:
        return len(self.seeds) * len(self.runs())

    def fault(self, entry: Entry) -> str | None:
        run, found = Run(*(entry[name] for name in Run._fields)), entry["trace"]
        if run not in self.runs():
            return f"no {run.arm!r} in epochs {run[1:]} in this study"
        if (found is None) != (run not in self.controls() or entry["diverged"] is not None):
            return f"'trace' is {found}, of {run.arm}"
        return None if found is None or _is_trace(found) else "'trace' lacks something"

    # --- the runs ---------------------------------------------------------------------------

    def run(self, runner: Runner) -> None:
        assert isinstance(runner.data, ImageData)
        self._check(runner.data)
        for seed in self.seeds:
            for run in self.runs():
                self._run(runner, seed, run)

    def _check(self, data: ImageData) -> None:
        if REMOVAL in self.strategies and self.count_removed(data.train_size) < 1:
            raise UserError(f"--removed {self.removed:g}: not one of {data.train_size} samples")
        if data.test_size <= data.outputs:
            raise UserError(
                f"--data {self.config.data}: {data.test_size} test images of {data.outputs} "
                "classes, of which no order can be told"
            )

    def _run(self, runner: Runner, seed: int, run: Run) -> None:
        key = run.key(seed)
        if runner.find(**key) is not None:
            return
        assert isinstance(runner.data, ImageData)
        parent, config = runner.out / f"seed{seed}", self.configured(run, seed)
        folder, begins_as = RunFolder(parent / run.name), self.begins_as(run)
        if begins_as is not None and not folder.is_run():
            root, fork = begins_as
            found = runner.find(**root.key(seed))
            check_branched(folder, was_due=found is None or found["epochs"] >= fork)
            reason = f"not run: what it begins as diverged before epoch {fork}"
            runner.store({**key, "trace": None, **entry_of(None, seed, reason)})
            return
        branches = [
            Branch(RunFolder(parent / other.name), self.configured(other, seed), at(begins[1]))
            for other in self.runs()
            if (begins := self.begins_as(other)) is not None and begins[0] == run
        ]
        actions = self.actions(run, runner.data.train_size)
        diverged = runner.train(
            config, folder, f"seed {seed}, {' '.join(self.label(key).split())}",
            branches=branches, actions=actions,
        )  # fmt: skip
        is_traced = run in self.controls() and diverged is None
        found = trace(config, runner.data, actions) if is_traced else None
        entry = normalisation.tested(entry_of(folder, seed, diverged), folder, runner.data)
        runner.store({**key, "trace": found, **entry})

    # --- what is shown ----------------------------------------------------------------------

    def label(self, entry: Entry) -> str:
        if entry["arm"] not in FIRST:
            return f"{entry['arm']:<8} throughout"
        return f"{entry['arm']:<8} in epochs {entry['begin']:>3} to {entry['end']:>3}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"enlightenment.png": partial(picture.draw, self, results)}


def _is_trace(found: Mapping[str, Any]) -> bool:
    """Whether it has what `trace` returns."""
    if set(found) != {"chance", *NAMES} or not isinstance(found["chance"], float):
        return False
    columns = [found[name] for name in NAMES]
    return all(
        isinstance(column, list) and len(column) == len(columns[0]) > 1
        and all(isinstance(value, (int, float)) for value in column)
        for column in columns
    )  # fmt: skip
