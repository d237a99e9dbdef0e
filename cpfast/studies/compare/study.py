"""Arms over seeds: what detecting the critical period saves, and what saves as much without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cpfast.train.compare import arms
from cpfast.train.compare.arms import Arm
from cpfast.train.compare.plan import Plan
from cpfast.train.compare.runner import Entry, Runner, entry_of
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import CONFIG, RunFolder


@dataclass(frozen=True)
class Comparison(Plan):
    """Arms x seeds.

    Attributes:
        arms: names, with those that others need (`arms.choose`).
        at: epoch after which `fixed` switches.
        budgets: in percent of full's samples.

    Raises:
        UserError: there is no such arm, or full is not among them.
    """

    arms: tuple[str, ...]
    at: int
    budgets: tuple[int, ...] = ()

    KIND: ClassVar = "arms"
    HEAD: ClassVar = {"arms": list, "at": int, "budgets": list}
    KEY: ClassVar = {"arm": (str,), "seed": (int,)}

    def __post_init__(self) -> None:
        odd = set(self.arms) - arms.known(self.at, self.budgets).keys()
        if odd or "full" not in self.arms:
            raise UserError(
                f"arms {', '.join(self.arms)}: {'no ' + min(odd) if odd else 'no full'}"
            )

    def wanted(self, results: Mapping[str, Any]) -> int:
        return len(self.seeds) * len(self.arms)

    def fault(self, entry: Entry) -> str | None:
        return None if entry["arm"] in self.arms else f"no arm {entry['arm']!r} in this comparison"

    def run(self, runner: Runner) -> None:
        known = arms.known(self.at, self.budgets)
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
        begun = (folder.path / CONFIG).exists()
        if needed is not None and needed["diverged"] is not None and not begun:
            reason = f"not run: {arm.needs}, on which it depends, diverged"
            return entry_of(None, config.seed, reason)
        samples = 0 if needed is None else needed["forward_samples"]

        def settings(arm: Arm) -> Config:
            return arm.settings(config, runner.data.train_size, samples)

        if arm.fork is not None and not begun:
            assert needed is not None
            epochs = range(1, needed["epochs"] + 1)
            if any(arm.fork(epoch, needed["period_end"]) for epoch in epochs):
                raise UserError(f"{folder.path}: missing, though full was forked into it")
            # The moment to fork never came, so this arm is the full one.
            RunFolder(parent / "full").fork(folder, settings(arm))
        forked = (
            [a for n in self.arms if (a := known[n]).fork is not None] if name == "full" else ()
        )

        def forks(training: Training) -> list[tuple[RunFolder, Config]]:
            epoch, end = training.epoch, training.detector.end_epoch
            due = [(RunFolder(parent / a.name), a) for a in forked if a.fork and a.fork(epoch, end)]
            return [(into, settings(a)) for into, a in due if not (into.path / CONFIG).exists()]

        label = f"seed {config.seed}, {name}"
        diverged = runner.train(settings(arm), folder, label, forks=forks)
        return entry_of(folder, config.seed, diverged, arm.watches)
