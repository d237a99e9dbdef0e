"""What each criterion's pick of the switch epoch cost, against the epoch that was best."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cpfast.studies.statistics import Estimate, interval, percent
from cpfast.studies.store import Entry, Results

if TYPE_CHECKING:
    from cpfast.studies.oracle.study import Oracle


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


def sweeps(study: Oracle, results: Results) -> list[Sweep]:
    """Of each setting that has a run."""
    found = []
    for setting in study.setting_names:
        total = study.configured(setting).epochs
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


def overall(
    study: Oracle, results: Results, cheap: bool = False
) -> dict[str, tuple[Estimate, int]]:
    """Each criterion's regret, averaged over the settings that have all seeds, and how many these
    are; the interval is over seeds.
    """
    by: dict[str, list[list[float]]] = {}
    for regret in judge(sweeps(study, results)).found:
        values = regret.cheap_regrets if cheap else regret.regrets
        if len(values) == len(study.seeds):
            by.setdefault(regret.criterion, []).append(values)
    return {
        criterion: (interval([statistics.fmean(seed) for seed in zip(*rows, strict=True)]),
                    len(rows))
        for criterion, rows in by.items()
    }  # fmt: skip
