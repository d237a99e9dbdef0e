"""Each arm over its seeds, against full and the best control, and the verdict on a saving."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cpfast.studies.compare import equal_time
from cpfast.studies.compare.arms import CONTROLS, FAIR
from cpfast.studies.statistics import Estimate, estimate, paired, percent
from cpfast.studies.store import Entry, Results
from cpfast.train import chance

# A saving that costs nothing.
TARGET_SAVED = 60.0  # % of full's time
TARGET_LOSS = 0.1  # points below full's mean
LEAST_SEEDS = 3  # for a verdict: with two the interval is 13 standard errors wide
NAMED = 3  # of the arms that are better than the best control; one may be of many


@dataclass(frozen=True)
class Summary:
    """One arm over its seeds; accuracies in %, differences in points, paired by seed.

    Attributes:
        entries: its runs that ended, by seed.
        diverged: why the others did not, by seed.
        accuracy, seconds: None where no run ended.
        to_full, saved: accuracy and time saved in % against full; None for full itself, and
            where no seed has both.
        to_control: accuracy against the best control; None for that control.
        to_equal: accuracy against k1 of the same time, see `equal_time`; None for k1.
    """

    arm: str
    entries: dict[int, Entry]
    diverged: dict[int, str]
    accuracy: Estimate | None
    seconds: Estimate | None
    to_full: Estimate | None = None
    saved: Estimate | None = None
    to_control: Estimate | None = None
    to_equal: Estimate | None = None

    def mean(self, key: str) -> float | None:
        """Of the runs that have it; None where none has."""
        values = [e[key] for e in self.entries.values() if e[key] is not None]
        return statistics.fmean(values) if values else None


def summarise(results: Results) -> tuple[dict[str, Summary], str | None]:
    """Each arm that has a run, in the plan's order, and the name of the best control.

    The best control is that of the highest mean accuracy, of those that ended in the same seeds
    as full: chosen after the fact, it is a little too good, which is the side to err on.
    """
    runs = results["runs"]
    ended = {
        arm: {e["seed"]: e for e in runs if e["arm"] == arm and e["diverged"] is None}
        for arm in results["arms"]
    }
    accuracy = {arm: estimate(percent(e) for e in by.values()) for arm, by in ended.items()}
    controls = {
        c: a.mean
        for c in CONTROLS
        if (a := accuracy.get(c)) is not None and ended[c].keys() == ended["full"].keys()
    }
    control = max(controls, key=lambda c: controls[c]) if controls else None
    summaries, curves = {}, equal_time.curves(ended)
    for arm, entries in ended.items():
        diverged = {
            e["seed"]: e["diverged"] for e in runs if e["arm"] == arm and e["diverged"] is not None
        }
        if not entries and not diverged:
            continue
        full = {} if arm == "full" else ended["full"]
        best = {} if control is None or arm == control else ended[control]
        summaries[arm] = Summary(
            arm,
            entries,
            diverged,
            accuracy[arm],
            estimate(e["seconds"] for e in entries.values()),
            paired(entries, full, lambda e, of: percent(e) - percent(of)),
            paired(entries, full, lambda e, of: 100 * (1 - e["seconds"] / of["seconds"])),
            paired(entries, best, lambda e, of: percent(e) - percent(of)),
            None if equal_time.is_control(arm) else equal_time.against(entries, curves),
        )
    return summaries, control


class _Judged(NamedTuple):
    saved: float  # % of full's time, rounded down as it is shown
    low: float  # end of the accuracy's interval
    margin: float  # of it above the least


def verdict(summaries: Mapping[str, Summary], *, finished: bool) -> str:
    """Whether an arm saves 60 % of full's time and is, by its interval, as good as full.

    Only arms that ended in the same seeds as full are judged, and only with three of them.
    """
    target = (
        f"at least {TARGET_SAVED:.0f} % of full's time with the lower end of its accuracy interval "
        f"at full's mean - {TARGET_LOSS} points or above"
    )
    full = summaries.get("full")
    others = [s for s in summaries.values() if s.arm != "full" and s.entries]
    if full is None or full.accuracy is None or not others:
        return (
            f"Nothing to judge a saving by{'' if finished else ' yet'}: full or all others lack a "
            "run that ended."
        )
    if (nothing := learned_nothing(full)) is not None:
        return nothing
    judged = [s for s in others if s.entries.keys() == full.entries.keys()]
    left = [s for s in others if s not in judged]
    unlike = "" if not left else (
        f" Not judged, for other seeds than full's ({_seeds(full)}): "
        f"{', '.join(f'{s.arm} ({_seeds(s)})' for s in left)}."
    )  # fmt: skip
    common = max(len(s.entries.keys() & full.entries.keys()) for s in judged or others)
    if common < LEAST_SEEDS:
        begun = {seed for s in summaries.values() for seed in (*s.entries, *s.diverged)}
        few = (
            "One seed" if len(begun) == 1
            else "Fewer than two common seeds" if common < 2
            else f"Fewer than {LEAST_SEEDS} seeds"
        )  # fmt: skip
        return f"{few}: whether an arm saves {target} cannot be said.{unlike}"
    if not judged:
        return f"Whether an arm saves {target} cannot be said: none has the seeds of full.{unlike}"
    least = full.accuracy.mean - TARGET_LOSS
    sure = {
        s.arm: _Judged(_down(s.saved.mean, 1), s.accuracy.low, s.accuracy.low - least)
        for s in judged
        if s.saved is not None and s.accuracy is not None
    }
    return _judge(sure, target, least) + unlike


def learned_nothing(full: Summary | None) -> str | None:
    """Said of a comparison in which there is nothing to lose; None where there is."""
    if full is None or full.accuracy is None:
        return None
    chances = [e["chance"] for e in full.entries.values() if e.get("chance") is not None]
    if not chances or not chance.is_near(full.accuracy.mean / 100, max(chances)):
        return None
    return (
        f"full itself has learned nothing: {full.accuracy.mean:.2f} %, where guessing the "
        f"commonest class gives {100 * max(chances):.2f} %. Nothing follows from this comparison; "
        "try --preset fast, another --lr or more --epochs."
    )


def _judge(sure: Mapping[str, _Judged], target: str, least: float) -> str:
    cheap = {arm: j for arm, j in sure.items() if j.saved >= TARGET_SAVED}
    met = {arm: j for arm, j in cheap.items() if j.margin >= 0}
    shown = f"{_down(least, 2):.2f} %"
    if met:
        which = ", ".join(
            f"{arm} ({j.saved:.1f} % saved, lower end {_down(j.low, 2):.2f} %)"
            for arm, j in met.items()
        )
        many = (
            f" {len(sure)} arms were judged, each by its own interval: with so many, one may get "
            "there by chance."
        )
        return (
            f"Saving {target} ({shown}): {which}.{many * (len(sure) > 1)} Full's mean is taken as "
            "known."
        )
    none = f"None of the arms run here saves {target} ({shown})"
    if cheap:
        nearest = max(cheap, key=lambda a: cheap[a].margin)
        return (
            f"{none}. The nearest is {nearest}: it saves {sure[nearest].saved:.1f} %, and its "
            f"lower end is {_lacking(sure[nearest])} points too low."
        )
    accurate = [arm for arm, j in sure.items() if j.margin >= 0] or list(sure)
    nearest = max(accurate, key=lambda a: sure[a].saved)
    best = sure[nearest]
    also = "" if best.margin >= 0 else f", and its lower end is {_lacking(best)} points too low"
    return f"{none}. The nearest is {nearest}: it saves {best.saved:.1f} %{also}."


def against_control(summaries: Mapping[str, Summary], control: str | None) -> str | None:
    """Whether detecting the period was worth it: detector against the best control."""
    detector = summaries.get("detector")
    if learned_nothing(summaries.get("full")) is not None:
        return None
    if detector is None or detector.accuracy is None:
        return None
    missing = [c for c in FAIR if c not in summaries or not summaries[c].entries]
    lacks = ""
    if missing:
        lacks = f" Without the controls {', '.join(missing)} the comparison is not complete."
    if control is None:
        return f"detector: no control ended in the same seeds as full.{lacks}"
    difference = detector.to_control
    if difference is None:
        return f"detector and {control}, the best control, have no seed in common.{lacks}"
    if len(detector.entries.keys() & summaries[control].entries.keys()) < LEAST_SEEDS:
        result = f"fewer than {LEAST_SEEDS} seeds, so no difference shown"
    elif difference.half is None or abs(difference.mean) <= difference.half:
        result = "no difference shown"
    else:
        result = "better" if difference.mean > 0 else "worse"
    return (
        f"detector against {control}, the best control: "
        f"{difference.text(sign=True, unit=' points')}, paired by seed: {result}.{lacks}"
    )


def controls_note(summaries: Mapping[str, Summary], control: str) -> str:
    """Which arms "control" is said of, which is the best, and what is better without being one."""
    run = [arm for arm in CONTROLS if arm in summaries]
    here = "all run here" if len(run) == len(CONTROLS) else f"run here: {', '.join(run)}"
    note = (
        f"The controls are {', '.join(CONTROLS)}, which detect nothing and score no sample "
        f"({here}). The best of them is {control}, by its mean accuracy; chosen after the fact, it "
        "is a little too good."
    )
    better = _better(summaries, summaries[control])
    if not better:
        return note
    named = ", ".join(
        f"{s.arm} ({s.to_control.text(sign=True)} points)" for s in better[:NAMED] if s.to_control
    )
    more = f" and {len(better) - NAMED} more" if len(better) > NAMED else ""
    return f"{note} Arms that are none of the controls have a higher mean than it: {named}{more}."


def _better(summaries: Mapping[str, Summary], control: Summary) -> list[Summary]:
    """The arms of full's seeds above a control, the best first; but full, which all are held
    against, and detector, of which it is said anyway."""
    rivals = [
        (s.accuracy.mean, s)
        for s in summaries.values()
        if s.arm not in (*CONTROLS, "full", "detector")
        and s.accuracy is not None
        and s.entries.keys() == summaries["full"].entries.keys()
    ]
    assert control.accuracy is not None
    above = [rival for rival in rivals if rival[0] > control.accuracy.mean]
    return [s for _, s in sorted(above, key=lambda rival: -rival[0])]


def _seeds(summary: Summary) -> str:
    numbers = sorted(summary.entries)
    return f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _down(value: float, digits: int) -> float:
    """Rounded down: 59.97 is not 60.0; but for the last bits, which 100 x (1 - .4) lacks."""
    return math.floor(value * 10**digits + 1e-6) / 10**digits


def _lacking(judged: _Judged) -> str:
    return f"{-_down(judged.margin, 2):.2f}"
