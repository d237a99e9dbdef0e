"""The frontier: accuracy against cost, of ordinary training that is tuned, and of all else.

At each budget the control is ordinary training, one pass an epoch over all data, with its learning
rate, weight decay, warm-up, label smoothing, schedule and, of images, augmentation tuned on
training data that is held out, and then its learning rate again: with more trials than a method
has, for it is below all of them. Each method is added to that, and its own knobs are tuned, all
with as many trials; its epochs are as many as cost what the control's do. Then both are trained on
all of the training data, seed by seed, and tested: once, at the end.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cpfast.studies.document import Document
from cpfast.studies.frontier import folds, methods, picture, table, tuning
from cpfast.studies.frontier.methods import AUTOPILOT, CONTROL, REFINED
from cpfast.studies.frontier.tuning import FINAL
from cpfast.studies.runner import Runner
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import Study, configured, filled, named, studies
from cpfast.studies.workers import Job
from cpfast.train.data import kind_of, side
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self

BUDGETS = (10, 20, 40, 60, 100)
TRIALS, FOLDS = 8, 3
OF_CONTROL = 3  # times as many trials


class _Run(NamedTuple):
    arm: str
    budget: int
    trial: int
    fold: int
    seed: int


@studies.register("frontier", source="this project")
@dataclass(frozen=True)
class Frontier(Study):
    """What is better than tuned ordinary training of the same cost?

    Attributes:
        methods: sums of `methods.parts`.
        budgets: in percent of what `config` costs: one pass in each of its epochs.
        trials: settings that are tried of each method at each budget.
        control_trials: of the control, whose learning rate is tuned by as many as a method then.
        folds: of the training data, on which the better half of them is tried each time.

    Raises:
        UserError: something is out of range, or there is no such method.
    """

    methods: tuple[str, ...]
    budgets: tuple[int, ...] = BUDGETS
    trials: int = TRIALS
    control_trials: int = OF_CONTROL * TRIALS
    folds: int = FOLDS

    KIND: ClassVar = "frontier"
    HEAD: ClassVar = {
        "methods": list, "budgets": list, "trials": int, "control_trials": int, "folds": int
    }  # fmt: skip
    KEY: ClassVar = {
        "arm": (str,), "budget": (int,), "trial": (int,), "fold": (int,), "seed": (int,)
    }  # fmt: skip
    OWN: ClassVar = {"settings": (dict,)}
    EXTENDS: ClassVar = {"methods": "--methods", "budgets": "--budgets"}

    def __post_init__(self) -> None:
        for budget in self.budgets:
            if not 1 <= budget <= 1000:
                raise UserError(f"--budgets must be in 1 .. 1000 (percent), got {budget}")
        for name in ("trials", "control_trials"):
            if (count := getattr(self, name)) < 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be at least 1, got {count}")
        if not 1 <= self.folds <= folds.FOLDS:
            raise UserError(f"--folds must be in 1 .. {folds.FOLDS}, got {self.folds}")
        for name in self.methods:
            methods.check(name, self.reads)

    @property
    def reads(self) -> str:
        """What kind of data it is of."""
        return kind_of(self.config.data) or "images"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = _methods_text()
        add = parser.add_argument
        add("--methods", metavar="NAME[,NAME]",
            help="what is held against tuned ordinary training, see below, or all of that; "
            "default: some ten, by the kind of data")  # fmt: skip
        add("--budgets", type=int, nargs="+", metavar="PERCENT",
            help="of one pass in each of --epochs; default: "
            f"{' '.join(map(str, BUDGETS))}")  # fmt: skip
        add("--trials", type=int, metavar="N",
            help="settings that are tried of each method, at each budget; default: "
            f"{TRIALS}")  # fmt: skip
        add("--control-trials", type=int, metavar="N",
            help="of ordinary training, which is below all of them, before --trials of its "
            f"learning rate; default: {OF_CONTROL} times as many")  # fmt: skip
        add("--folds", type=int, metavar="N",
            help="fifths of the training data that are held out, one after the other, from ever "
            f"fewer trials; default: {FOLDS}")  # fmt: skip
        add("--workers", type=int, metavar="N",
            help="runs at a time, each in a process of its own; default: 1")  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        options = filled(options, preset="fast", repeats=1)
        config, seeds = configured(options, energy=False, detect=False)
        if config.repeats != 1:
            raise UserError(
                f"--repeats {config.repeats}: ordinary training makes one pass an epoch; repeats "
                "are --methods detector"
            )
        text, reads = options["methods"], kind_of(config.data) or "images"
        if text is None:
            chosen = methods.default_methods(reads)
        else:
            chosen = named("--methods", text)
            if chosen == ("all",):
                chosen = methods.all_parts(reads)
        given = {name: options[name] for name in ("trials", "folds") if options[name] is not None}
        asked = options["control_trials"]
        given["control_trials"] = (
            given.get("trials", TRIALS) * OF_CONTROL if asked is None else asked
        )
        budgets = tuple(sorted(set(options["budgets"] or BUDGETS)))
        return cls(config, seeds, chosen, budgets, **given)

    # --- what is run ------------------------------------------------------------------------

    def epochs(self, budget: int) -> int:
        """Of the control."""
        return max(1, round(budget / 100 * self.config.epochs))

    def wanted(self, results: Results) -> int:
        counts = [len(tuning.trials(self, arm)) for arm in (CONTROL, REFINED, *self.methods)]
        tuned = sum(sum(tuning.rungs(count, self.folds)) for count in counts)
        return len(self.budgets) * (tuned + (1 + len(self.methods)) * len(self.seeds))

    def run(self, runner: Runner) -> None:
        self._tune(runner, (CONTROL,))
        self._tune(runner, (REFINED,))  # from whose best the methods begin
        self._check_methods(runner)
        self._tune(runner, self.methods)
        self._train(runner, self._finals(runner))

    def _tune(self, runner: Runner, arms: Sequence[str]) -> None:
        for fold in range(self.folds):
            runs = [
                _Run(arm, budget, trial, fold, self.config.seed)
                for budget in reversed(self.budgets)  # the longest first, lest workers wait
                for arm in arms
                if fold < len(tuning.rungs(len(tuning.trials(self, arm)), self.folds))
                for trial in tuning.left(self, runner.results, arm, budget, fold)
            ]
            # What the first trial of a method costs corrects the length of the others.
            first = [r for r in runs if r.trial == 0 and r.fold == 0]
            self._train(runner, first)
            self._train(runner, [r for r in runs if r not in first])

    def _finals(self, runner: Runner) -> Iterator[_Run]:
        for position, seed in enumerate(self.seeds):
            arms = (CONTROL, *self.methods)
            shift = position % len(arms)
            for budget in reversed(self.budgets):
                for arm in (*arms[shift:], *arms[:shift]):
                    best = tuning.winner(self, runner.results, arm, budget)
                    yield _Run(arm, budget, best, FINAL, seed)

    def _train(self, runner: Runner, runs: Sequence[_Run] | Iterator[_Run]) -> None:
        missing = [run for run in runs if runner.find(**run._asdict()) is None]
        jobs = {self._folder(runner, run).path: run for run in missing}
        for job, diverged in runner.train_all([self._job(runner, run) for run in missing]):
            run = jobs[job.folder.path]
            changes = tuning.settings(
                self, runner.results, run.arm, run.budget, run.trial, final=run.fold == FINAL
            )
            entry = entry_of(job.folder, run.seed, diverged, job.config.detect)
            runner.store({**run._asdict(), "settings": changes, **entry})
            if run.fold != FINAL:
                shutil.rmtree(job.folder.path)

    def _folder(self, runner: Runner, run: _Run) -> RunFolder:
        name = f"{run.arm}@{run.budget}".replace(":", "-")
        parent = runner.out / f"seed{run.seed}" / name
        return RunFolder(
            parent / ("final" if run.fold == FINAL else f"trial{run.trial}-fold{run.fold}")
        )

    def _job(self, runner: Runner, run: _Run) -> Job:
        final = run.fold == FINAL
        folder = self._folder(runner, run)
        if folder.is_run():  # begun before
            config = folder.config()
        elif run.arm == AUTOPILOT:
            config = methods.with_autopilot(self.config, run.budget, side(runner.data))
        else:
            config = tuning.configured(
                self, runner.results, run.arm, run.budget, run.trial, final=final
            )
        part = None if final else partial(folds.fold, number=run.fold)
        label = f"{run.arm} at {run.budget} %, {'seed' if final else 'trial'} "
        label += str(run.seed if final else run.trial)
        return Job(folder, config.replace(seed=run.seed), label, part)

    def _check_methods(self, runner: Runner) -> None:
        """Whether each can be trained at all, now, and not after hours."""
        from cpfast.train.loop import Training

        for arm in self.methods:
            for trial in range(len(tuning.trials(self, arm))):
                for budget in {self.budgets[0], self.budgets[-1]}:
                    run = _Run(arm, budget, trial, 0, self.config.seed)
                    if runner.find(**run._asdict()) is None:
                        Training(self._job(runner, run).config, folds.fold(runner.data, 0))

    # --- what is shown ----------------------------------------------------------------------

    def fault(self, entry: Entry) -> str | None:
        if entry["arm"] not in (CONTROL, REFINED, *self.methods):
            return f"no method {entry['arm']!r} in this frontier"
        if entry["budget"] not in self.budgets:
            return f"'budget' is {entry['budget']}, of {list(self.budgets)}"
        if not FINAL <= entry["fold"] < self.folds:
            return f"'fold' is {entry['fold']}, of {self.folds}"
        if not 0 <= entry["trial"] < len(tuning.trials(self, entry["arm"])):
            return f"'trial' is {entry['trial']}, of {len(tuning.trials(self, entry['arm']))}"
        return None

    def label(self, entry: Entry) -> str:
        what = "final" if entry["fold"] == FINAL else f"trial {entry['trial']}/{entry['fold']}"
        return f"{entry['arm']:<20} {entry['budget']:>4} %  {what:<9}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        return {"frontier.png": partial(picture.draw, self, results)}


def _methods_text() -> str:
    known = methods.parts()
    width = max(map(len, known))
    lines = ["methods, each with the knobs that are tuned; joined by + they are added up:"]
    for name, part in known.items():
        tuned = f" ({', '.join(part.knobs)})" if part.knobs else ""
        lines.append(f"  {name:<{width}}  {part.text}{tuned}")
    return "\n".join(lines)
