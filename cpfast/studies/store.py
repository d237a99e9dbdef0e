"""results.json of a study: what it holds, opened, checked, continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cpfast.studies import environment
from cpfast.studies.statistics import percent
from cpfast.studies.study import Study, name_of, studies
from cpfast.train import report
from cpfast.train.config import ENVIRONMENT, Config, changes
from cpfast.train.errors import UserError
from cpfast.train.metrics import EpochMetrics
from cpfast.train.runfolder import CONFIG, RunFolder, read_json, write_json

# "kind", "config", "seeds", "train_size" (samples), the study's own settings, "environments"
# (`environment.describe`, the later ones where it has changed), and "runs".
Results = Mapping[str, Any]
Entry = dict[str, Any]  # of "runs": `ENTRY`, and what the study adds

RESULTS = "results.json"
FORMAT = "cpfast-compare-2"
# Of where and how a run is executed; what could no longer be compared.
COMPARABLE = {
    "device": "times", "threads": "times", "step": "times", "country": "CO2e",
    "price_kwh": "costs", "price_hour": "costs",
}  # fmt: skip

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))
# Of every entry, as `entry_of` makes it, and the types of its values.
ENTRY: dict[str, tuple[type, ...]] = {
    "seed": (int,), "diverged": (str, type(None)), "test_accuracy": OPTIONAL_NUMBER,
    "test_loss": OPTIONAL_NUMBER, "train_loss": OPTIONAL_NUMBER, "epochs": (int,),
    "forward_samples": (int,), "backward_samples": (int,), "seconds": NUMBER,
    "evaluation_seconds": NUMBER, "detection_seconds": NUMBER, "preparation_seconds": NUMBER,
    "kwh": OPTIONAL_NUMBER, "energy": (dict, type(None)), "co2e_kg": OPTIONAL_NUMBER,
    "cost": OPTIONAL_NUMBER, "period_end": (int, type(None)),
    "period_end_reason": (str, type(None)), "curve": (list,), "rotation": (list, type(None)),
}  # fmt: skip
# Of an entry's "energy", what the notes name.
CO2E_KEYS = {"source", "grams_per_kwh", "country"}
COST_KEYS = {"source", "price_kwh", "price_hour"}


# --- looking at it --------------------------------------------------------------------------


def study_of(results: Results) -> Study:
    """The study that was run."""
    kind = _kind(results["kind"])
    assert kind is not None
    return kind.of(results)


def find(results: Results, **key: Any) -> Entry | None:
    """The run of which all that is given holds."""
    for entry in results["runs"]:
        if all(entry[name] == value for name, value in key.items()):
            return entry
    return None


def accuracies(results: Results, **key: Any) -> dict[int, float]:
    """In percent, by seed, of the runs of which all that is given holds and that ended."""
    return {
        entry["seed"]: percent(entry)
        for entry in results["runs"]
        if entry["diverged"] is None and all(entry[name] == value for name, value in key.items())
    }


def begun_seeds(results: Results) -> list[int]:
    """The seeds of which a run is stored."""
    return sorted({entry["seed"] for entry in results["runs"]})


def progress(results: Results) -> tuple[int, int]:
    """How many runs are done, and how many there are to be."""
    return len(results["runs"]), study_of(results).wanted(results)


def without_curves(results: Results) -> dict[str, Any]:
    """What tables need: every run's end, but not how it went there, epoch by epoch."""
    runs = [{**entry, "curve": [], "rotation": None} for entry in results["runs"]]
    return {**results, "runs": runs}


def has_curves(results: Results) -> bool:
    """Whether its pictures can be drawn."""
    return any(entry["curve"] for entry in results["runs"])


# --- its folder -----------------------------------------------------------------------------


def default_folder(study: Study) -> Path:
    """The same for the same settings, so that the same command continues."""
    config = study.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ENVIRONMENT}
    text = json.dumps([study.KIND, settings, list(study.seeds), study.settings()], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    data = report.data_name(config, limits=False)
    return Path("runs") / f"{name_of(type(study))}-{data}-{config.model}-{digest}".replace(":", "-")


def check_folder(out: Path) -> None:
    """Leave the folder as it is.

    Raises:
        UserError: it is neither new nor a study's.
    """
    if (out / RESULTS).exists():
        return
    folder = RunFolder(out)
    if folder.is_run():
        raise UserError(f"--out {out}: holds a single run, not a comparison; choose another folder")
    folder.check_free()


# --- opening --------------------------------------------------------------------------------


def open_results(study: Study, train_size: int, out: Path) -> dict[str, Any]:
    """The results in `out`, or new ones. More seeds may be added to those there are, and more of
    what the study `EXTENDS`.

    Raises:
        UserError: `out` holds another comparison, or something else, or runs whose times, CO2e or
            costs could not be compared with those to come.
    """
    here = environment.describe(study.config.device)
    head = {
        "kind": study.KIND, "config": study.config.to_dict(), "seeds": list(study.seeds),
        "train_size": train_size, **study.settings(),
    }  # fmt: skip
    if not (out / RESULTS).exists():
        results = {"format": FORMAT, **head, "environments": [here], "runs": []}
        write_json(out / RESULTS, results)
        return results
    results = read_results(out)
    stored = Config.from_dict(results["config"], out / RESULTS)
    other = changes(study.config.to_dict(), stored)
    if results["kind"] == study.KIND:
        other += _contradictions(study, head, results)
    else:
        other.append(f"kind {study.KIND} (it has {results['kind']})")
    if other:
        raise UserError(
            f"--out {out}: holds another comparison: {'; '.join(other)}; ask "
            "for all that it has, or choose another folder"
        )
    begun = bool(results["runs"]) or any(out.glob(f"seed*/**/{CONFIG}"))
    if begun:
        _check_comparable(study.config, stored, out)
    opened = {**results, **head}
    if not begun:
        opened["environments"] = [here]
    elif len(results["runs"]) < study.wanted(results) and not environment.same(
        here, results["environments"][-1]
    ):
        opened["environments"] = [*results["environments"], here]
    if opened != results:
        write_json(out / RESULTS, opened)
    return opened


def _contradictions(study: Study, head: Mapping[str, Any], stored: Results) -> list[str]:
    """What is asked for that the stored results cannot be extended to."""
    found = []
    for key, value in head.items():
        before = stored[key]
        if key in ("kind", "config") or value == before:
            continue
        if key == "seeds":
            if value[: len(before)] != before:
                found.append(f"seeds {_listed(value)} (it has {_listed(before)})")
        elif key in study.EXTENDS:
            if missing := [item for item in before if item not in value]:
                found.append(f"{study.EXTENDS[key]} without {_listed(missing)} (it has them)")
        else:
            found.append(f"{key} {value} (it has {before})")
    return found


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _check_comparable(config: Config, stored: Config, out: Path) -> None:
    for key, what in COMPARABLE.items():
        value, before = getattr(config, key), getattr(stored, key)
        if value != before:
            raise UserError(
                f"--out {out}: begun with --{key.replace('_', '-')} {before}, now {value}: {what} "
                "would not be comparable"
            )


# --- reading --------------------------------------------------------------------------------


def read_results(out: Path) -> dict[str, Any]:
    """results.json of whichever study.

    Raises:
        UserError: there is none, it is damaged, or its study is not installed here.
    """
    source = out / RESULTS
    if not source.exists():
        raise UserError(f"{out}: no comparison here (no {RESULTS})")
    results = read_json(source)
    if results.get("format") != FORMAT:
        raise UserError(f"{source}: not the results of a cpfast comparison of this version")
    if not isinstance(results.get("kind"), str):
        raise UserError(f"{source}: damaged ('kind' is {results.get('kind')!r})")
    kind = _kind(results["kind"])
    if kind is None:
        raise UserError(
            f"{source}: of the kind {results['kind']!r}, which no study here has "
            f"({', '.join(studies)})"
        )
    head = {
        "config": dict, "seeds": list, "train_size": int, **kind.HEAD, "environments": list,
        "runs": list,
    }  # fmt: skip
    for key, type_ in head.items():
        if not isinstance(results.get(key), type_):
            raise UserError(f"{source}: damaged ({key!r} is missing or of the wrong type)")
    Config.from_dict(results["config"], source)
    try:
        study = kind.of(results)
        study.wanted({**results, "runs": []})
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{source}: damaged ({error})") from error
    places = results["environments"]
    if not places or not all(
        isinstance(e, dict) and set(e) == set(environment.KEYS) for e in places
    ):
        raise UserError(f"{source}: damaged ('environments' is {places!r})")
    seen = set()
    for number, entry in enumerate(results["runs"], 1):
        fault = _fault(entry, kind) or study.fault(entry)
        if fault is None and entry["seed"] not in study.seeds:
            fault = f"'seed' is {entry['seed']}, of {results['seeds']}"
        if fault is None:
            identity = tuple(entry[name] for name in kind.KEY)
            fault = f"a second one of {identity}" if identity in seen else None
            seen.add(identity)
        if fault is not None:
            raise UserError(f"{source}: damaged (entry {number} of 'runs': {fault})")
    return results


def _kind(kind: str) -> type[Study] | None:
    kinds = [cast(type[Study], entry.factory) for entry in studies.values()]
    return next((study for study in kinds if kind == study.KIND), None)


def _fault(entry: Any, kind: type[Study]) -> str | None:
    if not isinstance(entry, dict):
        return "not an object"
    for key, types in {**kind.KEY, **kind.OWN, **ENTRY}.items():
        if key not in entry:
            return f"{key!r} is missing"
        if not isinstance(entry[key], types):
            return f"{key!r} is {entry[key]!r}"
    for key in ("chance", "flops"):  # which version 0.1.0 lacks
        if not isinstance(entry.get(key), OPTIONAL_NUMBER):
            return f"{key!r} is {entry[key]!r}"
    if not all(_numbers(point) and len(point) == 2 for point in entry["curve"]):
        return f"'curve' is {entry['curve']!r}"
    rotation, end = entry["rotation"], entry["period_end"]
    if rotation is not None and not _numbers(rotation):
        return f"'rotation' is {rotation!r}"
    # Results that are kept without curves have none to count.
    measured = entry["epochs"] if not entry["curve"] else len(rotation or ())
    if end is not None and not 1 <= end <= measured:
        return f"'period_end' is {end}, of {measured} epochs with a rotation"
    if (entry["kwh"] is not None and entry["energy"] is None) or not _is_energy(entry["energy"]):
        return f"'energy' is {entry['energy']!r}"
    if entry["diverged"] is not None:
        return None
    if entry["epochs"] < 1:
        return "no epoch, and not diverged"
    if kind.EVALUATED and entry["test_accuracy"] is None:
        return "no 'test_accuracy', and not diverged"
    return f"'seconds' is {entry['seconds']}" if entry["seconds"] <= 0 else None


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, (int, float)) for v in values)


def _is_energy(energy: dict[str, Any] | None) -> bool:
    if energy is None:
        return True
    parts = energy.get("components")
    if not isinstance(parts, dict):
        return False
    needed = [(part, {"source"}) for part in parts.values()]
    for name, keys in (("co2e", CO2E_KEYS), ("cost", COST_KEYS)):
        needed += [(energy[name], keys)] if energy.get(name) is not None else []
    return all(isinstance(part, dict) and keys <= part.keys() for part, keys in needed)


# --- writing --------------------------------------------------------------------------------


def entry_of(
    folder: RunFolder | None, seed: int, diverged: str | None, charged: bool = False
) -> Entry:
    """What a run came to; the study adds what identifies it.

    "test_accuracy" is that of the last epoch, never the best. "flops" are those of the samples that
    are counted; None where they are not known. "seconds" is the training, with scoring and
    selection, without evaluation, checkpoints and preparation (compiling and capturing the step);
    of the rotation only where the run acts on it: full measures it so that others can be forked
    from it, and is not charged.

    Args:
        folder: None for a run that never began.
        diverged: why it did not reach its end; it has no accuracy then.
        charged: for the time of measuring the rotation.
    """
    summary = None
    if folder is not None and (diverged is None or folder.metrics()):
        summary = report.summarise(folder)
    lines: Sequence[EpochMetrics] = [] if summary is None else summary["metrics"]
    curve, clock = [], 0.0
    for line in lines:
        clock += line["seconds"]["train"]
        clock -= 0 if charged else line["seconds"]["detection"]
        if line["test_accuracy"] is not None:
            curve.append([clock, line["test_accuracy"]])
    last: Mapping[str, Any] = lines[-1] if lines else {}
    energy = {} if summary is None else summary["energy"] or {}
    parts = ("evaluation", "detection", "preparation")
    seconds = dict.fromkeys(parts, 0.0) if summary is None else summary["seconds"]
    watched = summary is not None and summary["config"].detect
    measured = sum(line["measured_samples"] for line in lines) if charged else 0
    return {
        "seed": seed,
        "diverged": diverged,
        "test_accuracy": last.get("test_accuracy") if diverged is None else None,
        "test_loss": last.get("test_loss") if diverged is None else None,
        "chance": last.get("chance"),
        "train_loss": last.get("train_loss") if diverged is None else None,
        "epochs": len(lines),
        "forward_samples": sum(line["forward_samples"] for line in lines) + measured,
        "backward_samples": sum(line["backward_samples"] for line in lines) + measured,
        "flops": report.total(_flops(line, charged) for line in lines),
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


def _flops(line: EpochMetrics, charged: bool) -> float | None:
    """Of an epoch, with those for the criteria alone where they are charged."""
    flops, measured = line["flops"], line["measured_flops"]
    if charged or flops is None:
        return flops
    return None if measured is None else flops - measured


def _rotations(lines: Sequence[EpochMetrics]) -> list[float]:
    """The mean rotation after each epoch; one without a step leaves it as it was.

    To six digits: a picture needs no more, and a sweep has thousands of them.
    """
    rotations: list[float] = []
    for line in lines:
        last = rotations[-1] if rotations else 0.0
        value = line["rotation_mean"]
        rotations.append(last if value is None else float(f"{value:.6g}"))
    return rotations
