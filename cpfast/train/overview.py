"""Several runs in one table: a row a run, and what is to be known before rows are compared."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from cpfast.train import chance, report
from cpfast.train.config import ENVIRONMENT, Config
from cpfast.train.report import text_table

# Settings that a note of their own tells, or that no two runs need to share.
_TOLD = {"data", "image_size", "label", "labels", "model", "seed", "recipe_text"} | set(ENVIRONMENT)


class Run(NamedTuple):
    """One of the runs.

    Attributes:
        name: its folder, as it was given.
        summary: see `cpfast.train.report.summarise`.
        tested: fingerprint of its data, where the run's model is stored with it.
    """

    name: str
    summary: dict[str, Any]
    tested: str | None = None


def row(run: Run) -> dict[str, Any]:
    """Of one run, by column: accuracy a share, seconds those of training, energy in kWh."""
    summary, config = run.summary, run.summary["config"]
    return {
        "run": run.name,
        "data": report.data_name(config, limits=False),
        "limit": config.limit,
        "model": config.model,
        "method": config.method,
        "seed": config.seed,
        "epochs": summary["epochs"],
        "planned_epochs": config.epochs,
        "extended_from": config.extended_from,
        "test_accuracy": summary["test_accuracy"],
        "perplexity": report.perplexity(summary),
        "samples": summary["backward_samples"] + summary["measured_samples"],
        "flops": summary["flops"],
        "seconds": summary["seconds"]["train"],
        "kwh": None if summary["energy"] is None else summary["energy"]["kwh"],
        "period_end": summary["period_end"],
    }


def as_csv(runs: Sequence[Run]) -> str:
    """With a header; what is not known is empty."""
    text = io.StringIO(newline="")
    rows = [row(run) for run in runs]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(runs: Sequence[Run]) -> str:
    rows = [row(run) for run in runs]
    is_text = any(r["perplexity"] is not None for r in rows)
    header = (
        "run", "data", "model", "method", "seed", "epochs", "accuracy %",
        *(["perplexity"] if is_text else []), "samples", "train s", "Wh", "period end",
    )  # fmt: skip
    cells = [
        (
            r["run"], report.data_name(run.summary["config"]), r["model"], r["method"],
            str(r["seed"]), _epochs(r),
            _shown(r["test_accuracy"], lambda value: f"{100 * value:.2f}"),
            *([_shown(r["perplexity"], lambda value: f"{value:.2f}")] if is_text else []),
            f"{r['samples']:,}", f"{r['seconds']:.1f}",
            _shown(r["kwh"], lambda value: f"{1000 * value:.3g}"),
            str(r["period_end"] or ""),
        )
        for run, r in zip(runs, rows, strict=True)
    ]  # fmt: skip
    return "\n".join([text_table(header, cells), *notes(runs)])


def notes(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs beyond their seeds."""
    configs: list[Config] = [run.summary["config"] for run in runs]
    found = []
    apart = [
        what
        for what, values in (
            ("data", {_data_of(run) for run in runs}),
            ("models", {config.model for config in configs}),
        )
        if len(values) > 1
    ]
    if apart:
        found.append(f"Different {' and '.join(apart)}: these accuracies do not compare.")
    elif _have_changed(runs):
        found.append("The data have changed between these runs: their accuracies do not compare.")
    settings = [config.to_dict() for config in configs]
    others = [
        f"{name} ({', '.join(dict.fromkeys(_setting(values[name]) for values in settings))})"
        for name in settings[0]
        if name not in _TOLD and any(values[name] != settings[0][name] for values in settings)
    ]
    if others:
        found.append(f"They also differ in {', '.join(others)}." if apart else
                     f"They differ in {', '.join(others)}.")  # fmt: skip
    lost = [run.name for run in runs if _learned_nothing(run.summary)]
    if lost:
        found.append(f"No better than guessing the commonest class: {', '.join(lost)}.")
    return found


def _data_of(run: Run) -> tuple[Any, ...]:
    """What decides which test samples there are, and what their labels are."""
    config: Config = run.summary["config"]
    return (config.data, config.image_size, config.label, config.labels)


def _have_changed(runs: Sequence[Run]) -> bool:
    """Whether data of one name were not the same in all runs that took as much of them."""
    first: dict[int | None, str] = {}
    return any(
        run.tested is not None
        and first.setdefault(run.summary["config"].limit, run.tested) != run.tested
        for run in runs
    )


def _learned_nothing(summary: dict[str, Any]) -> bool:
    accuracy, guessed = summary["test_accuracy"], summary["chance"]
    return accuracy is not None and guessed is not None and chance.is_near(accuracy, guessed)


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _epochs(row: dict[str, Any]) -> str:
    done, planned = row["epochs"], row["planned_epochs"]
    longer = ", extended" if row["extended_from"] else ""
    return (str(done) if done == planned else f"{done} of {planned}") + longer


def _shown(value: float | None, form: Any) -> str:
    return "" if value is None else form(value)
