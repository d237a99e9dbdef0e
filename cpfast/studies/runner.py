"""The runner that all kinds of comparisons share, and what it stores of each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cpfast.train import report, run
from cpfast.train.config import Config
from cpfast.train.data import ImageData, TextData
from cpfast.train.errors import Diverged
from cpfast.train.loop import Progress
from cpfast.train.runfolder import CONFIG, RunFolder, write_json

RESULTS = "results.json"
Entry = dict[str, Any]
MakeProgress = Callable[[int, int, str], AbstractContextManager[Progress]]

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))
# Of every entry of "runs", as `entry_of` makes it, and the types of its values.
ENTRY: dict[str, tuple[type, ...]] = {
    "seed": (int,), "diverged": (str, type(None)), "test_accuracy": OPTIONAL_NUMBER,
    "test_loss": OPTIONAL_NUMBER, "train_loss": OPTIONAL_NUMBER, "epochs": (int,),
    "forward_samples": (int,), "backward_samples": (int,), "seconds": NUMBER,
    "evaluation_seconds": NUMBER, "detection_seconds": NUMBER, "preparation_seconds": NUMBER,
    "kwh": OPTIONAL_NUMBER, "energy": (dict, type(None)), "co2e_kg": OPTIONAL_NUMBER,
    "cost": OPTIONAL_NUMBER, "period_end": (int, type(None)),
    "period_end_reason": (str, type(None)), "curve": (list,), "rotation": (list, type(None)),
}  # fmt: skip


class Runner:
    """Trains what a plan asks for, and stores each result as it comes.

    Args:
        out: folder; locked by the caller.
        results: what results.json holds.
        progress: makes the bar of a run from (epochs, epochs done, label).
        finished: called with each entry that is stored now.
    """

    def __init__(
        self,
        out: Path,
        data: ImageData | TextData,
        results: dict[str, Any],
        progress: MakeProgress | None = None,
        finished: Callable[[Entry], None] | None = None,
    ) -> None:
        self.out = out
        self.data = data
        self.results = results
        self._progress = progress
        self._finished = finished

    def find(self, **key: Any) -> Entry | None:
        return find(self.results, **key)

    def store(self, entry: Entry) -> None:
        self.results["runs"].append(entry)
        write_json(self.out / RESULTS, self.results)
        if self._finished is not None:
            self._finished(entry)

    def train(self, config: Config, folder: RunFolder, label: str, **options: Any) -> str | None:
        """Begin or continue a run, with `options` for `run.train`; why it diverged, or None."""
        with folder.locked():
            if not (folder.path / CONFIG).exists():
                folder.create(config)
            bar: AbstractContextManager[Progress | None] = nullcontext()
            if self._progress is not None:
                bar = self._progress(config.epochs, folder.epochs(), label)
            try:
                with bar as shown:
                    run.train(config, self.data, folder, progress=shown, **options)
            except Diverged as error:
                return str(error)
            return None


def find(results: Mapping[str, Any], **key: Any) -> Entry | None:
    """The run of which all that is given holds."""
    for entry in results["runs"]:
        if all(entry[name] == value for name, value in key.items()):
            return entry
    return None


def begun_seeds(results: Mapping[str, Any]) -> list[int]:
    """The seeds of which a run is stored."""
    return sorted({entry["seed"] for entry in results["runs"]})


def entry_of(
    folder: RunFolder | None, seed: int, diverged: str | None, charged: bool = False
) -> Entry:
    """What a run came to; the kind adds what identifies it.

    "test_accuracy" is that of the last epoch, never the best. "seconds" is the training, with
    scoring and selection, without evaluation, checkpoints and preparation (compiling and capturing
    the step); of the rotation only where the run acts on it: full measures it so that others can
    be forked from it, and is not charged.

    Args:
        folder: None for a run that never began.
        diverged: why it did not reach its end; it has no accuracy then.
        charged: for the time of measuring the rotation.
    """
    summary = None
    if folder is not None and (diverged is None or folder.metrics()):
        summary = report.summarise(folder)
    lines = [] if summary is None else summary["metrics"]
    curve, clock = [], 0.0
    for line in lines:
        clock += line["seconds"]["train"]
        clock -= 0 if charged else line["seconds"]["detection"]
        if line["test_accuracy"] is not None:
            curve.append([clock, line["test_accuracy"]])
    last = lines[-1] if lines else {}
    energy = {} if summary is None else summary["energy"] or {}
    parts = ("evaluation", "detection", "preparation")
    seconds = dict.fromkeys(parts, 0.0) if summary is None else summary["seconds"]
    watched = summary is not None and summary["config"].detect
    samples = [report.samples(line) for line in lines]
    return {
        "seed": seed,
        "diverged": diverged,
        "test_accuracy": last.get("test_accuracy") if diverged is None else None,
        "test_loss": last.get("test_loss") if diverged is None else None,
        "train_loss": last.get("train_loss") if diverged is None else None,
        "epochs": len(lines),
        "forward_samples": sum(forward for forward, _ in samples),
        "backward_samples": sum(backward for _, backward in samples),
        "seconds": clock,
        "evaluation_seconds": seconds["evaluation"],
        "detection_seconds": seconds["detection"] if charged else 0.0,
        "preparation_seconds": seconds["preparation"],
        "kwh": energy.get("kwh"),
        "co2e_kg": (energy.get("co2e") or {}).get("kg"),
        "cost": (energy.get("cost") or {}).get("value"),
        "energy": energy or None,
        "period_end": last.get("period_end") if watched else None,
        "period_end_reason": last.get("period_end_reason") if watched else None,
        "curve": curve,
        "rotation": _rotations(lines) if watched else None,
    }


def _rotations(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The mean rotation after each epoch; one without a step leaves it as it was.

    To six digits: a picture needs no more, and a sweep has thousands of them.
    """
    rotations: list[float] = []
    for line in lines:
        last = rotations[-1] if rotations else 0.0
        value = line["rotation_mean"]
        rotations.append(last if value is None else float(f"{value:.6g}"))
    return rotations
