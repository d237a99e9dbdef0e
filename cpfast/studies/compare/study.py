"""Arms over seeds: what detecting the critical period saves, and what saves as much without it."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cpfast.studies.compare import arms, picture, table
from cpfast.studies.compare.arms import Arm
from cpfast.studies.compare.verdict import summarise
from cpfast.studies.document import Document
from cpfast.studies.runner import Branch, Runner, check_branched
from cpfast.studies.store import Entry, Results, entry_of
from cpfast.studies.study import Study, configured, named, studies
from cpfast.train import checks, references
from cpfast.train.config import Config
from cpfast.train.data import Data, TextData
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.ranks import Ranks
from cpfast.train.runfolder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Self


BEGINNING = "full-once-more"  # a folder that goes again


@studies.register("compare", source="this project")
@dataclass(frozen=True)
class Comparison(Study):
    """Arms over seeds, with the fair controls: what is saved, and at what accuracy.

    Attributes:
        arms: names, with those that others need (`arms.choose`).
        at: epoch after which `fixed` switches.
        budgets: in percent of full's samples, of all arms that have one.

    Raises:
        UserError: there is no such arm, or full is not among them.
    """

    arms: tuple[str, ...]
    at: int
    budgets: tuple[int, ...] = ()

    KIND: ClassVar = "arms"
    HEAD: ClassVar = {"arms": list, "at": int, "budgets": list}
    KEY: ClassVar = {"arm": (str,), "seed": (int,)}
    EXTENDS: ClassVar = {"arms": "--arms", "budgets": "--budgets"}

    def __post_init__(self) -> None:
        odd = set(self.arms) - self.known().keys()
        if odd or "full" not in self.arms:
            raise UserError(
                f"arms {', '.join(self.arms)}: {'no ' + min(odd) if odd else 'no full'}"
            )

    def known(self) -> dict[str, Arm]:
        """All arms that there are with these budgets."""
        return arms.known(self.at, self.budgets)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = _arms_text()
        add = parser.add_argument
        add("--arms", metavar="NAME[,NAME]",
            help="ways to train, see below, or all; full, and what an arm depends on, come along; "
            f"default: {','.join(arms.DEFAULT)}; with --repeats 1 all")  # fmt: skip
        add("--budgets", type=int, nargs="*", metavar="PERCENT",
            help="also controls that use so much of full's samples; without a number: "
            f"{' '.join(map(str, arms.BUDGETS))}")  # fmt: skip
        add("--at", type=int, metavar="EPOCH",
            help="after which the arm fixed makes one pass; also the period's end of --criterion "
            "fixed; default: an eighth of all")  # fmt: skip
        add("--keep", type=float, metavar="SHARE",
            help="of the samples, that pruning keeps; default: by the policy, mostly 0.5"
        )  # fmt: skip
        add("--reference", metavar="FILE",
            help="of arms whose policy is tokens: losses of another model on the same training "
            "data, as cpfast score writes them; default: tokens are chosen by their own loss"
        )  # fmt: skip
        add("--anneal", type=float, metavar="SHARE",
            help="after which nothing is left out any more, as in cpfast train")  # fmt: skip

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        # With --criterion fixed the arms `detector` and `fixed` are one.
        is_fixed = options.get("criterion") == "fixed"
        config, seeds = configured(options, at=options["at"] if is_fixed else None)
        at = math.ceil(config.epochs / 8) if options["at"] is None else options["at"]
        if not 1 <= at <= config.epochs:
            raise UserError(f"--at must be in 1 .. {config.epochs} (--epochs), got {at}")
        budgets: tuple[int, ...] = ()
        if options["budgets"] is not None:
            budgets = tuple(sorted(set(options["budgets"]))) or arms.BUDGETS
        for budget in budgets:
            if not 1 <= budget <= 100:
                raise UserError(f"--budgets must be in 1 .. 100 (percent), got {budget}")
        # With k = 1 most of the default ones are full all over again.
        default = ",".join(arms.DEFAULT) if config.repeats > 1 else "all"
        wanted = named("--arms", default if options["arms"] is None else options["arms"])
        of_budgets = [
            name for name, arm in arms.known(at, budgets).items()
            if arm.budget is not None and (config.repeats > 1 or not arm.repeated)
        ]  # fmt: skip
        budgets = tuple(sorted({*budgets, *arms.budgets_of(wanted)}))
        known = arms.known(at, budgets)
        chosen = arms.choose([*wanted, *of_budgets], known, config.repeats)
        if config.reference is not None and not any(known[a].takes_reference for a in chosen):
            able = arms.taking_references(known, config.repeats)
            raise UserError(
                f"--reference goes with arms whose policy selects among tokens: {', '.join(able)}; "
                f"got --arms {','.join(chosen)}"
            )
        return cls(config, seeds, chosen, at, budgets)

    def wanted(self, results: Results) -> int:
        return len(self.seeds) * len(self.arms)

    def fault(self, entry: Entry) -> str | None:
        return None if entry["arm"] in self.arms else f"no arm {entry['arm']!r} in this comparison"

    def check(self, data: Data) -> None:
        super().check(data)
        known, ranks = self.known(), Ranks()
        for arm in map(known.__getitem__, self.arms):
            if arm.needs in (None, "full"):  # what is matched to another depends on its samples
                checks.check(arm.configured(self.config, data.train_size, 0), data, ranks)
        if self.config.reference is not None and isinstance(data, TextData):
            references.load(self.config.reference, data)

    def run(self, runner: Runner) -> None:
        known = self.known()
        for position, seed in enumerate(self.seeds):
            shift = position * len(self.arms) // len(self.seeds)
            for name in arms.order(self.arms, known, shift):
                if runner.find(arm=name, seed=seed) is None:
                    entry = self._run_arm(known, name, self.config.replace(seed=seed), runner)
                    runner.store({"arm": name, **entry})

    def _run_arm(self, known: dict[str, Arm], name: str, config: Config, runner: Runner) -> Entry:
        arm, parent = known[name], runner.out / f"seed{config.seed}"
        folder = RunFolder(parent / name)
        needed = None if arm.needs is None else runner.find(arm=arm.needs, seed=config.seed)
        if needed is not None and needed["diverged"] is not None and not folder.is_run():
            reason = f"not run: {arm.needs}, on which it depends, diverged"
            return entry_of(None, config.seed, reason)
        samples = 0 if needed is None else needed["forward_samples"]

        def settings(arm: Arm) -> Config:
            return arm.configured(config, runner.data.train_size, samples)

        if arm.fork is not None and not folder.is_run():
            assert needed is not None
            if _was_due(arm, needed):
                self._begin_again(known, config, needed, runner)
                check_branched(folder, was_due=True)
            else:
                # The moment to fork never came, so this arm is the full one.
                RunFolder(parent / "full").fork(folder, settings(arm))
        branches = [
            Branch(RunFolder(parent / other), settings(known[other]), partial(_is_due, fork))
            for other in self.arms
            if name == "full" and (fork := known[other].fork) is not None
        ]
        label = f"seed {config.seed}, {name}"
        diverged = runner.train(settings(arm), folder, label, branches=branches)
        return entry_of(folder, config.seed, diverged, arm.watches)

    def _begin_again(
        self, known: dict[str, Arm], config: Config, full: Entry, runner: Runner
    ) -> None:
        """Full once more, as far as arms begin with it that were not asked for when it was run."""
        parent = runner.out / f"seed{config.seed}"
        branches = [
            Branch(
                RunFolder(parent / arm.name),
                arm.configured(config, runner.data.train_size, 0),
                partial(_is_due, arm.fork),
            )
            for arm in map(known.__getitem__, self.arms)
            if arm.fork is not None and _was_due(arm, full)
        ]
        folder = RunFolder(parent / BEGINNING)
        as_full = known["full"].configured(config, runner.data.train_size, 0)
        runner.train(
            as_full, folder, f"seed {config.seed}, full once more", branches=branches,
            until=lambda _: all(branch.folder.is_run() for branch in branches),
        )  # fmt: skip
        shutil.rmtree(folder.path)

    def label(self, entry: Entry) -> str:
        return f"{entry['arm']:<{max(18, *map(len, self.arms))}}"

    def document(self, results: Results) -> Document:
        return table.document(self, results)

    def pictures(self, results: Results) -> Mapping[str, Callable[[Path], None]]:
        drawn = {
            "accuracy.png": partial(picture.draw_accuracy, self, results),
            "rotation.png": partial(picture.draw_rotation, self, results),
        }
        if any(s.to_equal is not None for s in summarise(results)[0].values()):
            drawn["equal-time.png"] = partial(picture.draw_equal_time, self, results)
        return drawn


def _was_due(arm: Arm, full: Entry) -> bool:
    """Of an arm that is forked from full, whether that came to where it is."""
    assert arm.fork is not None
    return any(arm.fork(epoch, full["period_end"]) for epoch in range(1, full["epochs"] + 1))


def _is_due(fork: Callable[[int, int | None], bool], training: Training) -> bool:
    return fork(training.epoch, training.detector.end_epoch)


def _arms_text() -> str:
    """A line for each arm, but of those that go by a policy, a recipe or a criterion one for all:
    k stands for --repeats."""
    known = arms.known(0, (50,))
    of_policy = {"POLICY": "aum", "k1+POLICY": "k1+aum", "detector+POLICY": "detector+aum"}
    parts = {
        "arms; k is --repeats, the passes over the data in an epoch": {
            name: known[name].describe("k", "--at") for name in ("full", "detector", *arms.CONTROLS)
        },
        "of each POLICY of cpfast list policies (random is rs2)": {
            shown: known[name].describe("k", "--at") + " from the start" * (name != "detector+aum")
            for shown, name in of_policy.items()
        },
        "by their names alone, and not among all": {
            "RECIPE, k1+RECIPE": "another of cpfast list recipes, with k or one pass",
            "detector:CRITERION": "k, then 1, by another of cpfast list criteria",
            "k1@B, rs2@B, shortened@B": "these controls with B % of full's samples, as --budgets",
        },
    }
    width = max(len(name) for part in parts.values() for name in part)
    lines = []
    for title, part in parts.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<{width}}  {text}" for name, text in part.items()]
    lines.append("detector's samples: as many in all as the arm detector is trained on")
    return "\n".join(lines)
