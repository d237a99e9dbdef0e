"""Where should the repeats have ended? A sweep of switch epochs, and each criterion's regret.

k repeats until epoch e, then one, all forked from one full run: e = 0 is k1, e = T is full. The
sweep is repeated under other weight decays, batch sizes and lengths, where a rule that was fitted
to one recipe would go wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from cpfast.detection import CriticalPeriodDetector, criteria
from cpfast.train.compare.plan import Plan
from cpfast.train.compare.runner import Entry, Runner, entry_of
from cpfast.train.compare.statistics import Estimate, interval, percent
from cpfast.train.config import Config
from cpfast.train.errors import UserError
from cpfast.train.loop import Training
from cpfast.train.runfolder import CONFIG, RunFolder

# Halves and doubles what is configured; the learning rate stays.
SETTINGS: dict[str, Callable[[Config], Config]] = {
    "base": lambda c: c,
    "decay-half": lambda c: c.replace(weight_decay=c.weight_decay / 2),
    "decay-double": lambda c: c.replace(weight_decay=c.weight_decay * 2),
    "batch-half": lambda c: c.replace(batch_size=max(1, c.batch_size // 2)),
    "batch-double": lambda c: c.replace(batch_size=c.batch_size * 2),
    "epochs-half": lambda c: c.replace(epochs=max(1, c.epochs // 2)),
    "epochs-double": lambda c: c.replace(epochs=c.epochs * 2),
}
POINTS = 7  # between k1 and full


@dataclass(frozen=True)
class Oracle(Plan):
    """Settings x seeds x switch epochs.

    Attributes:
        setting_names: of `SETTINGS`.
        switches: epochs of the base setting; in a setting of another length they are scaled.

    Raises:
        UserError: an unknown setting, an epoch outside of the training, or k = 1.
    """

    setting_names: tuple[str, ...] = tuple(SETTINGS)
    switches: tuple[int, ...] = ()

    KIND: ClassVar = "oracle"
    HEAD: ClassVar = {"setting_names": list, "switches": list}
    KEY: ClassVar = {"setting": (str,), "switch": (int,), "seed": (int,)}
    OWN: ClassVar = {"picks": (dict, type(None))}

    def __post_init__(self) -> None:
        for name in self.setting_names:
            if name not in SETTINGS:
                raise UserError(
                    f"--oracle-settings: must be of {', '.join(SETTINGS)}; got {name!r}"
                )
        for switch in self.switches:
            if not 0 <= switch <= self.config.epochs:
                raise UserError(
                    f"--switch-epochs must be in 0 .. {self.config.epochs} (--epochs), got {switch}"
                )
        if self.config.repeats == 1:
            raise UserError("--oracle: with --repeats 1 there is nothing to switch")

    def configured(self, setting: str) -> Config:
        """The settings of full: accuracy is only wanted at the end."""
        config = SETTINGS[setting](self.config).replace(method="full", energy=False)
        config = config.replace(criterion="slope45", at=None)
        return config.replace(eval_every=config.epochs)

    def grid(self, setting: str) -> list[int]:
        """0, T, and what is to be tried between them."""
        total = self.configured(setting).epochs
        scale = total / self.config.epochs
        between = [round(e * scale) for e in self.switches] or geometric(total)
        return sorted({0, total, *(e for e in between if 0 <= e <= total)})

    def wanted(self, results: Mapping[str, Any]) -> int:
        """Of each seed the grid, and off it the picks of the full runs that are stored."""
        grids = {name: self.grid(name) for name in self.setting_names}
        picked = [
            set(e["picks"].values()) - {None, *grids[e["setting"]]}
            for e in results["runs"] if e["picks"]
        ]  # fmt: skip
        return len(self.seeds) * sum(map(len, grids.values())) + sum(map(len, picked))

    def fault(self, entry: Entry) -> str | None:
        if entry["setting"] not in self.setting_names:
            return f"no setting {entry['setting']!r} in this comparison"
        total, picked = self.configured(entry["setting"]).epochs, entry["picks"]
        if not 0 <= entry["switch"] <= total:
            return f"'switch' is {entry['switch']}, of {total} epochs"
        if (picked is not None) != (entry["switch"] == total):
            return f"'picks' is {picked}, with 'switch' {entry['switch']} of {total} epochs"
        for pick in (picked or {}).values():
            if pick is not None and not (isinstance(pick, int) and 1 <= pick <= total):
                return f"'picks' is {picked}"
        if entry["diverged"] is None and entry["forward_samples"] < 1:
            return f"'forward_samples' is {entry['forward_samples']}, and not diverged"
        return None

    def largest_batch(self) -> int:
        return max(self.configured(name).batch_size for name in self.setting_names)

    def run(self, runner: Runner) -> None:
        for position, seed in enumerate(self.seeds):
            for setting in self.setting_names:
                total = self.configured(setting).epochs
                full = self._run(runner, setting, seed, total)
                rest = {*self.grid(setting), *(e for e in full["picks"].values() if e)} - {total}
                # As the arms of a comparison, they begin with another one for every seed.
                shift = position % len(rest) if rest else 0
                for switch in (sorted(rest) * 2)[shift : shift + len(rest)]:
                    self._run(runner, setting, seed, switch)

    def _run(self, runner: Runner, setting: str, seed: int, switch: int) -> Entry:
        key = {"setting": setting, "switch": switch, "seed": seed}
        if (stored := runner.find(**key)) is not None:
            return stored
        full = self.configured(setting).replace(seed=seed)
        parent = runner.out / f"seed{seed}" / setting
        folder = RunFolder(parent / f"switch{switch}")
        whole = RunFolder(parent / f"switch{full.epochs}")
        config, forks = switched(full, switch), None
        if switch == full.epochs:
            grid = self.grid(setting)

            def forks(training: Training) -> list[tuple[RunFolder, Config]]:
                epoch = training.epoch
                picked = picks(_curve(training), full.epochs).values()
                into = RunFolder(parent / f"switch{epoch}")
                due = 0 < epoch < full.epochs and (epoch in grid or epoch in picked)
                due = due and not (into.path / CONFIG).exists()
                return [(into, switched(full, epoch))] if due else []

        elif switch > 0 and not (folder.path / CONFIG).exists():
            stored = runner.find(**{**key, "switch": full.epochs})
            assert stored is not None
            if stored["epochs"] >= switch:
                raise UserError(f"{folder.path}: missing, though full was forked into it")
            reason = f"not run: full diverged before epoch {switch}"
            entry = {**key, "picks": None, **entry_of(None, seed, reason)}
            runner.store(entry)
            return entry
        label = f"seed {seed}, {setting}, k = {full.repeats} until epoch {switch}"
        diverged = runner.train(config, folder, label, forks=forks)
        picked = None
        if switch == full.epochs:
            lines = [line for line in whole.metrics() if line["rotation_mean"] is not None]
            picked = picks([(x["epoch"], x["rotation_mean"]) for x in lines], full.epochs)
        entry = {**key, "picks": picked, **entry_of(folder, seed, diverged)}
        runner.store(entry)
        return entry


def geometric(total: int) -> list[int]:
    """Epochs up to half of the training, each about twice the one before."""
    return sorted({max(1, round(total / 2**i)) for i in range(1, POINTS + 1)})


def switched(full: Config, switch: int) -> Config:
    """k repeats until `switch`, then one."""
    if switch == full.epochs:
        return full
    if switch == 0:
        return full.replace(repeats=1, detect=False)
    return full.replace(method="detector", criterion="fixed", at=switch)


def _curve(training: Training) -> list[tuple[int, float]]:
    """The mean rotation after each epoch."""
    means = [math.fsum(rotation) / len(rotation) for rotation in training.rotations]
    return list(enumerate(means, 1))


def picks(history: Sequence[tuple[int, float]], total: int) -> dict[str, int | None]:
    """The epoch at which each criterion, but the fixed one, ends the period of this rotation."""
    ends = {}
    for criterion, entry in criteria.items():
        if getattr(entry.factory, "of_rotation", False):
            detector = CriticalPeriodDetector(criterion, total)
            for epoch, value in history:
                detector.step(value, epoch)
            ends[criterion] = detector.end_epoch
    return ends


class Sweep(NamedTuple):
    """One setting's runs by switch epoch, then by seed; those that diverged are left out.

    Attributes:
        picks: of each criterion, the epoch by seed; T where it never fired.
    """

    setting: str
    total: int
    runs: dict[int, dict[int, Entry]]
    picks: dict[str, dict[int, int]]

    def seeds(self) -> list[int]:
        return sorted(self.runs.get(self.total, {}))

    def common(self) -> list[int]:
        """The switch epochs of which every seed has a run."""
        return [e for e in sorted(self.runs) if set(self.seeds()) <= set(self.runs[e])]


class Regret(NamedTuple):
    """What a criterion's pick cost, by seed, in points of accuracy.

    Attributes:
        picks, oracles: switch epochs.
        regrets: accuracy at the oracle's epoch minus that at the pick: negative where the pick
            was better.
        cheap_oracles, cheap_regrets: the same, the oracle allowed no more samples than the pick.
    """

    setting: str
    criterion: str
    picks: list[int]
    oracles: list[int]
    regrets: list[float]
    cheap_oracles: list[int]
    cheap_regrets: list[float]
    accuracies: list[float]
    shares: list[float]  # of full's samples, that the picks used, in %


def sweeps(results: Mapping[str, Any]) -> list[Sweep]:
    """Of each setting that has a run."""
    plan, found = Oracle.of(results), []
    for setting in plan.setting_names:
        total = plan.configured(setting).epochs
        runs: dict[int, dict[int, Entry]] = {}
        picked: dict[str, dict[int, int]] = {}
        for entry in results["runs"]:
            if entry["setting"] != setting or entry["diverged"] is not None:
                continue
            runs.setdefault(entry["switch"], {})[entry["seed"]] = entry
            for criterion, epoch in (entry["picks"] or {}).items():
                picked.setdefault(criterion, {})[entry["seed"]] = epoch or total
        if runs:
            found.append(Sweep(setting, total, runs, picked))
    return found


def regrets(sweep: Sweep) -> list[Regret]:
    """Of each criterion, over the seeds whose pick has run.

    The best of noisy means is too good. So a seed's oracle is the epoch that is best in the mean
    over the *other* seeds; with one seed there is nothing else than the plain maximum.
    """
    found = []
    for criterion, picked in sweep.picks.items():
        rows = []
        for seed, pick in picked.items():
            run = sweep.runs.get(pick, {}).get(seed)
            if run is None:
                continue
            affordable = [
                e for e in sweep.common()
                if sweep.runs[e][seed]["forward_samples"] <= run["forward_samples"]
            ]  # fmt: skip
            free, cheap = oracle(sweep, seed, sweep.common()), oracle(sweep, seed, affordable)
            if free is None or cheap is None:
                continue
            full = sweep.runs[sweep.total][seed]["forward_samples"]
            at = percent(run)
            rows.append(
                (pick, free, percent(sweep.runs[free][seed]) - at,
                 cheap, percent(sweep.runs[cheap][seed]) - at,
                 at, 100 * run["forward_samples"] / full)
            )  # fmt: skip
        if rows:
            found.append(Regret(sweep.setting, criterion, *map(list, zip(*rows, strict=True))))
    return found


def oracle(sweep: Sweep, seed: int, switches: Iterable[int]) -> int | None:
    """The switch epoch that is best in the mean over the other seeds; of equals the earliest."""
    others = [s for s in sweep.seeds() if s != seed] or [seed]
    means = {
        e: statistics.fmean(sweep.runs[e][s]["test_accuracy"] for s in others) for e in switches
    }
    return max(means, key=lambda e: (means[e], -e)) if means else None


class Regrets(NamedTuple):
    """Of all settings that can be judged.

    Attributes:
        found: by setting and criterion.
        skipped: settings with one complete seed, where others have more: there is no other seed
            to choose the oracle by.
        by_others: whether oracles are chosen by the other seeds; else there is one seed.
    """

    found: list[Regret]
    skipped: list[str]
    by_others: bool


def judge(found: Sequence[Sweep]) -> Regrets:
    by_others = any(len(sweep.seeds()) > 1 for sweep in found)
    skipped = [s.setting for s in found if by_others and len(s.seeds()) == 1]
    kept = [regret for s in found if s.setting not in skipped for regret in regrets(s)]
    return Regrets(kept, skipped, by_others)


def overall(results: Mapping[str, Any], cheap: bool = False) -> dict[str, tuple[Estimate, int]]:
    """Each criterion's regret, averaged over the settings that have all seeds, and how many these
    are; the interval is over seeds.
    """
    by: dict[str, list[list[float]]] = {}
    for regret in judge(sweeps(results)).found:
        values = regret.cheap_regrets if cheap else regret.regrets
        if len(values) == len(results["seeds"]):
            by.setdefault(regret.criterion, []).append(values)
    return {
        criterion: (interval([statistics.fmean(seed) for seed in zip(*rows, strict=True)]),
                    len(rows))
        for criterion, rows in by.items()
    }  # fmt: skip
