"""Arms over seeds: what detecting the critical period saves, and what saves as much without it.

full        k repeats in every epoch
detector    k repeats until the period has ended, then one; forked from full at that moment,
            so that both share their beginning, and its cost is that beginning plus the rest
k1          one repeat in every epoch: the first fair control
k1_matched  one repeat for as many samples as the detector arm used, with more epochs and the
            schedule stretched: the second fair control
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cpfast.train import report
from cpfast.train.config import ENVIRONMENT, Config, changes
from cpfast.train.data import ImageData
from cpfast.train.errors import UserError, require
from cpfast.train.loop import Progress, Training, run
from cpfast.train.runfolder import CONFIG, RunFolder, read_json, write_json

ARMS = ("full", "detector", "k1", "k1_matched")
FORMAT = "cpfast-compare-1"
RESULTS = "results.json"
# of an entry of its "runs", as `summarise_arm` makes it
ENTRY_KEYS = {
    "arm", "seed", "test_accuracy", "epochs", "forward_samples", "seconds", "detection_seconds",
    "kwh", "energy_sources", "period_end", "curve",
}  # fmt: skip
MakeProgress = Callable[[int, int, str], AbstractContextManager[Progress]]


def compare(
    config: Config,
    data: ImageData,
    out: Path,
    seeds: Sequence[int],
    progress: MakeProgress | None = None,
    finished: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run what is missing in `out` of the arms x seeds; the folder is locked by the caller.

    results.json is written after each arm; an arm under way continues from its last epoch.

    Args:
        config: of the full arm; its method and seed are set here.
        progress: makes the bar of an arm from (epochs, epochs done, label).
        finished: called with the entry of an arm that ends now.

    Returns:
        What results.json holds: "config", "seeds", and "runs", one entry per arm and seed with
        "test_accuracy", "forward_samples", "epochs", "seconds" (of training), "kwh", "curve".

    Raises:
        UserError: `out` holds another comparison.
    """
    results = open_results(out, config, seeds)
    for seed in seeds:
        for arm in ARMS:
            if find(results, arm, seed) is not None:
                continue
            folder = _run_arm(arm, config.replace(seed=seed), data, out / f"seed{seed}", progress)
            entry = summarise_arm(arm, seed, folder)
            results["runs"].append(entry)
            write_json(out / RESULTS, results)
            if finished is not None:
                finished(entry)
    return results


def open_results(out: Path, config: Config, seeds: Sequence[int]) -> dict[str, Any]:
    """The results in `out`, or new ones.

    Raises:
        UserError: `out` holds another comparison, or something else.
    """
    if (out / RESULTS).exists():
        results = read_results(out)
        stored = Config.from_dict(results["config"], out / RESULTS)
        other = changes(config.to_dict(), stored)
        if list(seeds) != results["seeds"]:
            other.append(f"seeds {list(seeds)} (it has {results['seeds']})")
        if other:
            raise UserError(f"--out {out}: holds another comparison: {'; '.join(other)}")
        return results
    results = {
        "format": FORMAT, "config": config.to_dict(), "seeds": list(seeds), "runs": []
    }  # fmt: skip
    write_json(out / RESULTS, results)
    return results


def default_folder(config: Config, seeds: Sequence[int]) -> Path:
    """The same for the same settings, so that the same command continues."""
    settings = {k: v for k, v in config.to_dict().items() if k not in ENVIRONMENT}
    text = json.dumps([settings, list(seeds)], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    name = report.data_name(config.replace(limit=None))
    return Path("runs") / f"compare-{name}-{config.model}-{digest}"


def check_folder(out: Path) -> None:
    """Leave the folder as it is.

    Raises:
        UserError: it is neither new nor a comparison's.
    """
    if not (out / RESULTS).exists():
        RunFolder(out).check_free()


def read_results(out: Path) -> dict[str, Any]:
    """results.json of a comparison.

    Raises:
        UserError: there is none, or it is damaged.
    """
    source = out / RESULTS
    if not source.exists():
        raise UserError(f"{out}: no comparison here (no {RESULTS})")
    results = read_json(source)
    if results.get("format") != FORMAT:
        raise UserError(f"{source}: not the results of a cpfast comparison of this version")
    for key, kind in (("config", dict), ("seeds", list), ("runs", list)):
        if not isinstance(results.get(key), kind):
            raise UserError(f"{source}: damaged ({key!r} is missing or of the wrong type)")
    for number, entry in enumerate(results["runs"], 1):
        if not isinstance(entry, dict) or not entry.keys() >= ENTRY_KEYS:
            raise UserError(f"{source}: damaged (entry {number} of 'runs' is incomplete)")
    return results


def find(results: dict[str, Any], arm: str, seed: int) -> dict[str, Any] | None:
    for entry in results["runs"]:
        if (entry["arm"], entry["seed"]) == (arm, seed):
            return entry
    return None


def arm_config(arm: str, config: Config, parent: Path) -> Config:
    """The settings of an arm; `k1_matched` reads the detector arm's samples from `parent`."""
    if arm == "full":
        return config.replace(method="full")
    if arm == "detector":
        return config.replace(method="detector")
    one = config.replace(method="full", repeats=1, detect=False, criterion="slope45", at=None)
    if arm == "k1":
        return one
    summary = report.summarise(RunFolder(parent / "detector"))
    passes = summary["forward_samples"] * config.repeats * config.epochs // summary["full_samples"]
    return one.replace(epochs=passes, eval_every=math.ceil(passes / 10))


def _run_arm(
    arm: str, config: Config, data: ImageData, parent: Path, progress: MakeProgress | None
) -> RunFolder:
    folder = RunFolder(parent / arm)
    settings = arm_config(arm, config, parent)
    detector = RunFolder(parent / "detector")

    def forks(training: Training) -> list[tuple[RunFolder, Config]]:
        ends = training.detector.end_epoch == training.epoch
        if arm == "full" and ends and not (detector.path / CONFIG).exists():
            return [(detector, arm_config("detector", config, parent))]
        return []

    if not (folder.path / CONFIG).exists():
        if arm == "detector":
            # The period did not end, so this arm is the full one.
            RunFolder(parent / "full").fork(folder, settings)
        else:
            folder.create(settings)
    done = folder.epochs()
    bar: AbstractContextManager[Progress | None] = nullcontext()
    if progress is not None:
        bar = progress(settings.epochs, done, f"seed {config.seed}, {arm}")
    with bar as shown:
        run(settings, data, folder, progress=shown, forks=forks)
    return folder


def summarise_arm(arm: str, seed: int, folder: RunFolder) -> dict[str, Any]:
    """One entry of results.json.

    "seconds" is the training time, evaluation excluded. The full arm measures the rotation only
    so that the detector arm can fork from it; that time is taken off.
    """
    summary = report.summarise(folder)
    watching = arm == "detector"
    curve, clock = [], 0.0
    for line in summary["metrics"]:
        clock += line["seconds"]["train"] - (0 if watching else line["seconds"]["detection"])
        if line["test_accuracy"] is not None:
            curve.append([clock, line["test_accuracy"]])
    energy = summary["energy"]
    return {
        "arm": arm,
        "seed": seed,
        "test_accuracy": summary["test_accuracy"],
        "epochs": summary["epochs"],
        "forward_samples": summary["forward_samples"],
        "seconds": clock,
        "detection_seconds": summary["seconds"]["detection"] if watching else 0.0,
        "kwh": None if energy is None else energy["kwh"],
        "energy_sources": None if energy is None else report.energy_sources(energy),
        "period_end": summary["period_end"] if watching else None,
        "curve": curve,
    }


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval by the t distribution (None for one value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = require("scipy.stats", "an interval").t.ppf(0.975, len(values) - 1)
    return mean, float(quantile) * statistics.stdev(values) / math.sqrt(len(values))


def compare_table(results: dict[str, Any], picture: Path | None = None) -> str:
    """The table of `cpfast compare`, with what may be concluded from it."""
    config = Config.from_dict(results["config"], Path(RESULTS))
    full = {e["seed"]: e for e in results["runs"] if e["arm"] == "full"}
    rows = []
    for arm in ARMS:
        entries = [e for e in results["runs"] if e["arm"] == arm]
        if not entries:
            continue
        pairs = [e for e in entries if e["seed"] in full]
        gain = [100 * (e["test_accuracy"] - full[e["seed"]]["test_accuracy"]) for e in pairs]
        saved = [100 * (1 - e["seconds"] / full[e["seed"]]["seconds"]) for e in pairs]
        energy = [1000 * e["kwh"] for e in entries if e["kwh"] is not None]
        rows.append(
            (
                arm,
                _mean([100 * e["test_accuracy"] for e in entries], 2),
                "" if arm == "full" or not pairs else _mean(gain, 2, sign=True),
                f"{statistics.fmean(e['forward_samples'] for e in entries):,.0f}",
                _mean([e["seconds"] for e in entries], 1),
                "" if arm == "full" or not pairs else f"{statistics.fmean(saved):.0f} %",
                f"{statistics.fmean(energy):.3g}" if energy else "not measured",
            )
        )
    header = (
        "arm",
        "accuracy %",
        "to full, points",
        "forward_samples",
        "time s",
        "time saved",
        "energy Wh",
    )
    done, wanted = len(results["runs"]), len(ARMS) * len(results["seeds"])
    title = (
        f"{report.data_name(config)}, {config.model}, {config.epochs} epochs, k = {config.repeats}"
    )
    if done < wanted:
        title += f": {done} of {wanted} runs, unfinished"
    lines = [title, report.text_table(header, rows), *_notes(results, config)]
    if picture is not None:
        lines.append(f"picture: {picture}")
    return "\n".join(lines)


def _notes(results: dict[str, Any], config: Config) -> list[str]:
    seeds = len(results["seeds"])
    notes = []
    if seeds > 1:
        notes.append(
            f"Means and 95 % intervals (t distribution) over {seeds} seeds; differences are paired "
            "by seed."
        )
    else:
        notes.append("One seed: no interval, and no conclusion from small differences.")
    ends = [e["period_end"] for e in results["runs"] if e["arm"] == "detector"]
    if ends:
        shown = ", ".join("not" if end is None else str(end) for end in ends)
        notes.append(f"The critical period ended after epoch: {shown}.")
    notes.append("Accuracy is that of the last epoch.")
    notes.append(
        "Time is training without evaluation; detector's is its beginning, shared with full, plus "
        "the rest."
    )
    sources = {e["energy_sources"] for e in results["runs"] if e["energy_sources"]}
    if sources:
        notes.append(f"Energy includes evaluation ({'; '.join(sorted(sources))}).")
    notes.append(
        "The fair controls are k1 and k1_matched: they are as cheap as the detector arm and detect "
        "nothing."
    )
    if config.data == "digits":
        notes.append("On digits this shows the mechanism, not a benefit.")
    return notes


def _mean(values: Sequence[float], digits: int, sign: bool = False) -> str:
    mean, half = interval(values)
    text = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"
