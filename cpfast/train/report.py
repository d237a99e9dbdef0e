"""What a run or a comparison came to, as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cpfast.train import chance, extension, metrics, models
from cpfast.train.config import Config
from cpfast.train.data import KINDS
from cpfast.train.energy import source_of_sum
from cpfast.train.errors import UserError
from cpfast.train.metrics import CriterionMetrics, EpochMetrics, GuardMetrics, Seconds
from cpfast.train.runfolder import METRICS, RunFolder

PARTS = ("detection", "scoring", "selection")


def summarise(folder: RunFolder) -> dict[str, Any]:
    """The sums over a run's epochs that its table shows.

    Returns:
        "config" and "metrics" (the lines), "epochs", "test_accuracy" (of the last epoch that was
        evaluated: in a finished run the last), "test_loss", "chance" (of guessing there, or None),
        "forward_samples", "backward_samples", "full_samples" and "measured_samples", "flops" (None:
        not known of all epochs), "criteria" (as in a line, with the sums of their seconds and
        samples), "communication" (of an epoch in the mean), "seconds" by part (None: not timed),
        "energy" (of energy.json, or None), "period_end" and "period_end_reason", and "guard" (None
        without --guard). What a guard has trained beside the run counts in all sums.

    Raises:
        UserError: no run, or none of its epochs is completed, or a line is damaged.
    """
    config = folder.config()
    stored = folder.metrics()
    if not stored:
        raise UserError(f"{folder.path / METRICS}: no epoch is completed yet")
    lines = []
    for line in stored:
        try:
            lines.append(metrics.read(line))
        except ValueError as error:
            raise UserError(
                f"{folder.path / METRICS}, line {line['epoch']}: damaged ({error})"
            ) from error
    last = lines[-1]
    guarded = [line["guard"] for line in lines if line["guard"] is not None]
    charged: list[EpochMetrics | GuardMetrics] = [*lines, *guarded]
    full = sum(line["full_samples"] for line in lines)
    seconds, energy = _seconds(lines), folder.energy()
    evaluated = [line for line in lines if line["test_accuracy"] is not None]
    return {
        "config": config,
        "metrics": lines,
        "epochs": last["epoch"],
        "evaluated_epoch": evaluated[-1]["epoch"] if evaluated else None,
        "test_accuracy": evaluated[-1]["test_accuracy"] if evaluated else None,
        "test_loss": evaluated[-1]["test_loss"] if evaluated else None,
        "chance": last["chance"],
        "forward_samples": sum(part["forward_samples"] for part in charged),
        "backward_samples": sum(part["backward_samples"] for part in charged),
        "full_samples": full,
        "measured_samples": sum(part["measured_samples"] for part in charged),
        "flops": total(
            part["flops"] for part in (*charged, *(entry["validation"] for entry in guarded))
        ),
        "criteria": _criteria(lines),
        "communication": _communication(lines, config.passes),
        "seconds": seconds,
        "energy": energy,
        "guard": _guard(config, lines, energy, seconds),
        "period_end": last["period_end"],
        "period_end_reason": last["period_end_reason"],
    }


def document(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary as JSON has it: the settings as in config.json, and no lines of metrics, which
    metrics.jsonl has."""
    shown = {name: value for name, value in summary.items() if name != "metrics"}
    return {**shown, "config": summary["config"].to_dict()}


def run_table(
    summary: dict[str, Any], picture: Path | None = None, model: str | None = None
) -> str:
    """The table at the end of `cpfast train`.

    Args:
        model: where the trained model is, and how it is used.
    """
    config: Config = summary["config"]
    seconds = summary["seconds"]
    done, total = summary["epochs"], config.epochs
    rows = [("test accuracy", _accuracy_text(summary))]
    if (of_text := perplexity(summary)) is not None:
        rows.append(("perplexity", f"{of_text:.2f} a character"))
    rows.append(("critical period", _period_text(summary)))
    rows += _guard_rows(summary)
    measured = summary["measured_samples"]
    used, full = summary["backward_samples"] + measured, summary["full_samples"]
    rows.append(
        (
            "samples processed",
            f"{used:,} of the full recipe's {full:,} (k = {config.passes}): "
            f"{100 * (1 - used / full):.1f} % saved"
            + f"; {measured:,} of them for the criteria"
            * (measured > 0),
        )
    )
    rows.append(("computation", flops_text(summary["flops"])))
    rows.append(
        (
            "training time",
            f"{_time(seconds['train'])}, plus evaluation {_time(seconds['evaluation'])}"
            + (f" and preparation {_time(seconds['preparation'])}" * (seconds["preparation"] > 0)),
        )
    )
    rows += _energy_rows(summary["energy"])
    for part in PARTS:
        share = "within the captured step, not timed on its own"
        if seconds[part] is not None:
            share = f"{100 * seconds[part] / seconds['train']:.2f} % of the training time"
            if part == "scoring":
                share += " (upper bound: it contains the loss itself)"
        rows.append((part, share))
    scored = summary["forward_samples"] - summary["backward_samples"]
    if scored > 0:
        rows.append(("only scored", _scored_text(scored, summary)))
    if summary["communication"]["ranks"] > 1:
        rows.append(("communication", _communication_text(summary["communication"])))
    for name, found in summary["criteria"].items():
        if name != config.criterion:
            rows.append((f"watched: {name}", _watched_text(found)))
    if picture is not None:
        rows.append(("picture", str(picture)))
    if model is not None:
        rows.append(("model", model))
    title = f"{data_name(config)}, {config.model}, {config.method}, seed {config.seed}: " + (
        f"{total} epochs" if done == total else f"epoch {done} of {total}, unfinished"
    )
    title += extension.describe(config)
    width = max(len(name) for name, _ in rows)
    lines = [title, "-" * len(title), *(f"{name:<{width}}  {value}" for name, value in rows)]
    if config.passes > 1:
        lines.append(
            f"The saving is against k = {config.passes} throughout; "
            "`cpfast compare` measures it against k = 1."
        )
    return "\n".join(lines)


def perplexity(summary: dict[str, Any]) -> float | None:
    """Of a character of the test text; None of other data."""
    if models.kind_of(summary["config"].model) != "text" or summary["test_loss"] is None:
        return None
    return math.exp(min(summary["test_loss"], 700))


def _scored_text(scored: int, summary: dict[str, Any]) -> str:
    """Forward passes that a policy added: samples, and what they took of time and energy."""
    seconds, energy = summary["seconds"], summary["energy"]
    if seconds["forwards"] is None:
        return f"{scored:,} samples, within the captured step"
    share = seconds["forwards"] / (seconds["train"] + seconds["evaluation"])
    of_training = 100 * seconds["forwards"] / seconds["train"]
    text = f"{scored:,} samples more, in {of_training:.2f} % of the training time"
    if energy is not None and energy["kwh"] is not None:
        text += f"; by its time {share * watt_hours(energy):.3g} Wh of the energy"
    return text


def _communication_text(sent: dict[str, Any]) -> str:
    """Of an epoch, in the mean over those of as many processes as the last."""
    return (
        f"between {sent['ranks']} processes: {sent['collectives']:,.0f} collectives an epoch, of "
        f"{sent['bytes'] / 1e6:,.3g} MB from each; one of them syncs the scores, "
        f"{sent['sync_bytes'] / sent['samples']:.3g} bytes a sample"
    )


def _communication(lines: list[EpochMetrics], passes: int) -> dict[str, Any]:
    """Also the samples of the data, but for what does not fill a batch."""
    last = lines[-1]["communication"]["ranks"]
    parts = [c for line in lines if (c := line["communication"])["ranks"] == last]
    means = {
        key: statistics.fmean(part[key] for part in parts)
        for key in ("collectives", "bytes", "sync_bytes")
    }
    samples = sum(line["full_samples"] for line in lines) / (passes * len(lines))
    return {"ranks": last, "samples": samples, **means}


def data_name(config: Config, *, limits: bool = True) -> str:
    """The last part of a path, or the name; with the limits, if there are any."""
    kind = models.kind_of(config.model)
    samples = "samples" if kind is None else KINDS[kind].samples
    told = []
    if config.limit is not None:
        told.append(f"{config.limit:,} {samples}")
    if config.limit_test is not None:
        told.append(f"tested on {config.limit_test:,}")
    return Path(config.data).name + (f" ({', '.join(told)})" if told and limits else "")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry: the first to the left, the others to the right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def energy_sources(energy: dict[str, Any]) -> str:
    """For example "CPU estimated, GPU measured, RAM estimated"; what is not used is left out."""
    return ", ".join(
        f"{name.upper()} {part['source']}"
        for name, part in energy["components"].items()
        if part["source"] != "none"
    )


def watt_hours(energy: dict[str, Any]) -> float:
    return 1000 * energy["kwh"]


def _accuracy_text(summary: dict[str, Any]) -> str:
    if summary["test_accuracy"] is None:
        return "not evaluated yet"
    epoch = summary["evaluated_epoch"]
    last = " (the last)" if epoch == summary["config"].epochs else ""
    shown = f"{100 * summary['test_accuracy']:.2f} % at epoch {epoch}{last}"
    guessed = summary["chance"]
    if guessed is not None and chance.is_near(summary["test_accuracy"], guessed):
        shown += f"; guessing the commonest class gives {100 * guessed:.2f} %: nothing was learned"
    return shown


def _period_text(summary: dict[str, Any]) -> str:
    config: Config = summary["config"]
    if not config.detect:
        return "not watched"
    if summary["period_end"] is None:
        return "did not end"
    acted = "" if config.recipe().uses_detector else "; this method ignores it"
    if not acted and summary["period_end"] == config.epochs:
        acted = "; the last, so nothing could be saved"
    return f"ended after epoch {summary['period_end']} ({summary['period_end_reason']}){acted}"


def _watched_text(found: CriterionMetrics) -> str:
    end = found["period_end"]
    ended = "did not end" if end is None else f"ended after epoch {end}"
    censored = " (censored: it could not have been found earlier)" * found["censored"]
    return f"{ended}{censored}; {_time(found['seconds'])}, {found['samples']:,} samples"


def _energy_rows(energy: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Energy, and CO2e and cost where they are known: an earlier version counted neither."""
    if energy is None:
        return [("energy", "not measured")]
    rows = [("energy", "not measured")]
    if energy["kwh"] is not None:
        used = {n: p for n, p in energy["components"].items() if p["source"] != "none"}
        parts = ", ".join(
            f"{name.upper()} {1000 * part['kwh']:.3g} {part['source']}"
            for name, part in used.items()
        )
        source = source_of_sum(part["source"] for part in used.values())
        rows = [("energy", f"{source} {watt_hours(energy):.3g} Wh, evaluation included ({parts})")]
    co2e, cost = energy.get("co2e"), energy.get("cost")
    if co2e is not None:
        grid = "the world's mean" if co2e["country"] is None else f"the mean of {co2e['country']}"
        grams = f"{co2e['source']} {1000 * co2e['kg']:.3g} g"
        rows.append(("CO2e", f"{grams} ({co2e['grams_per_kwh']:.0f} g a kWh, {grid})"))
    if cost is not None:
        prices = []
        for unit, per in (("kwh", "a kWh"), ("hour", "an hour")):
            price, part = cost[f"price_{unit}"], cost[f"by_{unit}"]
            if price is not None:
                prices.append(
                    f"{price:g} {per}" + (" left out: not measured" if part is None else "")
                )
        shown = f"{cost['source']} {cost['value']:.3g}, evaluation included"
        rows.append(("cost", f"{shown} ({', '.join(prices)})"))
    return rows


def _criteria(lines: Sequence[EpochMetrics]) -> dict[str, CriterionMetrics]:
    """As the last epoch has them, with the sums of what they cost."""
    summed: dict[str, CriterionMetrics] = {}
    for name, last in lines[-1]["criteria"].items():
        own = [line["criteria"][name] for line in lines if name in line["criteria"]]
        seconds, samples = math.fsum(x["seconds"] for x in own), sum(x["samples"] for x in own)
        summed[name] = {**last, "seconds": seconds, "samples": samples}
    return summed


def _seconds(lines: Sequence[EpochMetrics]) -> dict[str, float | None]:
    """Of all epochs, by part; None for a part that one of them did not time."""
    found: dict[str, float | None] = {}
    guarded = [line["guard"] for line in lines if line["guard"] is not None]
    for part in Seconds.__annotations__:
        of_lines = [one["seconds"][part] for one in (*lines, *guarded)]  # type: ignore[literal-required]
        if part == "evaluation":
            of_lines += [one["validation"]["seconds"] for one in guarded]
        found[part] = total(of_lines)
    return found


def _guard(
    config: Config,
    lines: Sequence[EpochMetrics],
    energy: dict[str, Any] | None,
    seconds: dict[str, float | None],
) -> dict[str, Any] | None:
    """What --guard has decided, by what, and what it cost.

    Returns:
        "points", "switch" (epochs completed when both were begun; None: they were not, and nothing
        else is said), "kept", "verdict", "reason", "epoch" (of the last comparison), "cost",
        "lower", "upper" (shares), "validation_samples"; of what was trained beside the run:
        "forward_samples", "samples" (trained on, and measured by criteria), "flops", "seconds",
        "kwh" (by the time; the two with the evaluations of what is held out); "saved_samples" (of
        full_samples, by the run's own epochs) and "net_saved_samples" (less "samples").
    """
    if config.guard is None:
        return None
    guarded = [(line["epoch"], line["guard"]) for line in lines if line["guard"] is not None]
    if not guarded:
        return {"points": config.guard, "switch": None}
    (first, _), (epoch, last) = guarded[0], guarded[-1]
    entries = [entry for _, entry in guarded]
    told = ("kept", "verdict", "reason", "cost", "lower", "upper")
    used = sum(entry["backward_samples"] + entry["measured_samples"] for entry in entries)
    own = sum(line["backward_samples"] + line["measured_samples"] for line in lines)
    saved = sum(line["full_samples"] for line in lines) - own
    took = math.fsum(
        entry["seconds"]["train"] + entry["seconds"]["evaluation"] + entry["validation"]["seconds"]
        for entry in entries
    )
    kwh, whole = None if energy is None else energy["kwh"], 0.0
    for part in ("train", "evaluation"):
        whole += seconds[part] or 0.0
    return {
        "points": config.guard,
        "switch": first - 1,
        "epoch": epoch,
        **{name: last[name] for name in told},  # type: ignore[literal-required]
        "validation_samples": last["validation"]["samples"],
        "forward_samples": sum(entry["forward_samples"] for entry in entries),
        "samples": used,
        "flops": total(
            [*(x["flops"] for x in entries), *(x["validation"]["flops"] for x in entries)]
        ),
        "seconds": took,
        "kwh": kwh if kwh is None or whole == 0 else kwh * took / whole,
        "saved_samples": saved,
        "net_saved_samples": saved - used,
    }


def guard_text(
    points: float, found: GuardMetrics | dict[str, Any], samples: int, epoch: int, switch: int
) -> str:
    """What a comparison of --guard shows, and what follows from it.

    Args:
        found: of it, or a summary's "guard".
        samples: held out.
        epoch: after which.
        switch: epochs completed at the period's end.
    """
    back = f"back to epoch {switch}, and on as if the critical period had not ended"
    values: Any = [found[name] for name in ("cost", "lower", "upper")]
    if None in values:
        if found["verdict"] == "spending":
            return f"the run that saves is dropped ({found['reason']}): {back}"
        return f"the run that spends is dropped ({found['reason']})"
    cost, lower, upper = (100 * value for value in values)
    shown = (
        f"{cost:.2f} points on {samples:,} held-out samples, shown to be "
        f"between {lower:.2f} and {upper:.2f}"
    )
    if found["verdict"] == "spending":
        return f"after epoch {epoch} the saving costs more than {points:g} points ({shown}): {back}"
    if found["verdict"] == "saving":
        return f"after epoch {epoch} the saving costs less than {points:g} points ({shown}): kept"
    kept = "; the run that saves is kept" if found["verdict"] == "undecided" else ""
    return f"undecided after epoch {epoch} (the saving costs {shown}){kept}"


def _guard_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    found = summary["guard"]
    if found is None:
        return []
    if found["switch"] is None:
        so_far = " so far" * (summary["epochs"] < summary["config"].epochs)
        return [("guard", f"nothing was trained after the critical period{so_far}")]
    full, wh = summary["full_samples"], ""
    if found["kwh"] is not None:
        wh = f", by its time {watt_hours(found):.3g} Wh"
    saved, net = (100 * found[name] / full for name in ("saved_samples", "net_saved_samples"))
    cost = (
        f"{found['samples']:,} samples, {flops_text(found['flops'])}, {_time(found['seconds'])}{wh}"
        f"; {saved:.1f} % of the samples saved without it, {net:.1f} % net of it"
    )
    points, samples, epoch = (found[k] for k in ("points", "validation_samples", "epoch"))
    text = guard_text(points, found, samples, epoch, found["switch"])
    return [("guard", text), ("cost of the guard", cost)]


def total(values: Iterable[float | None]) -> float | None:
    """Their sum; None where one of them is not known."""
    added = 0.0
    for value in values:
        if value is None:
            return None
        added += value
    return added


def flops_text(flops: float | None) -> str:
    """Such as "1.2e13 FLOPs"."""
    if flops is None:
        return "unknown"
    digits, _, power = f"{flops:.1e}".partition("e")
    return f"{digits}e{int(power)} FLOPs" if flops else "0 FLOPs"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
