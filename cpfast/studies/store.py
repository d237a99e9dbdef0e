"""results.json of a comparison: opened, checked, continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpfast.train import report
from cpfast.train.compare import environment
from cpfast.train.compare.comparison import Comparison
from cpfast.train.compare.falsify import Falsification
from cpfast.train.compare.oracle import Oracle
from cpfast.train.compare.plan import Plan
from cpfast.train.compare.runner import ENTRY, RESULTS, Entry, MakeProgress, Runner
from cpfast.train.config import ENVIRONMENT, Config, changes
from cpfast.train.data import ImageData, TextData
from cpfast.train.errors import UserError
from cpfast.train.runfolder import CONFIG, RunFolder, read_json, write_json

FORMAT = "cpfast-compare-2"
KINDS: dict[str, type[Plan]] = {kind.KIND: kind for kind in (Comparison, Falsification, Oracle)}
# Of where and how a run is executed; what could no longer be compared.
COMPARABLE = {
    "device": "times", "threads": "times", "step": "times", "country": "CO2e",
    "price_kwh": "costs", "price_hour": "costs",
}  # fmt: skip
# Of an entry's "energy", what the notes name.
CO2E_KEYS = {"source", "grams_per_kwh", "country"}
COST_KEYS = {"source", "price_kwh", "price_hour"}


def run(
    plan: Plan,
    data: ImageData | TextData,
    out: Path,
    progress: MakeProgress | None = None,
    finished: Callable[[Entry], None] | None = None,
) -> dict[str, Any]:
    """Run what is missing in `out`, which the caller has locked.

    results.json is written after each run; one under way continues from its last epoch. A run
    that diverges is stored as such, and the rest goes on.

    Args:
        data: with its true labels.
        progress, finished: see `Runner`.

    Returns:
        What results.json holds: "kind", "config", "seeds", "train_size" (samples), the kind's own
        settings, "environments" (`environment.describe`, the later ones where it has changed),
        and "runs".

    Raises:
        UserError: `out` holds another comparison.
    """
    results = open_results(plan, data.train_size, out)
    plan.run(Runner(out, data, results, progress, finished))
    return results


def open_results(plan: Plan, train_size: int, out: Path) -> dict[str, Any]:
    """The results in `out`, or new ones. More seeds may be added to those there are.

    Raises:
        UserError: `out` holds another comparison, or something else, or runs whose times, CO2e or
            costs could not be compared with those to come; a batch is larger than the data.
    """
    if plan.largest_batch() > train_size:
        # Said now, and not after the first hours.
        raise UserError(
            f"a batch of {plan.largest_batch()}, the largest of this comparison, is more than the "
            f"{train_size} samples to train on; use a smaller --batch-size"
        )
    here = environment.describe(plan.config.device)
    head = {
        "kind": plan.KIND, "config": plan.config.to_dict(), "seeds": list(plan.seeds),
        "train_size": train_size, **plan.settings(),
    }  # fmt: skip
    if not (out / RESULTS).exists():
        results = {"format": FORMAT, **head, "environments": [here], "runs": []}
        write_json(out / RESULTS, results)
        return results
    results = read_results(out)
    stored = Config.from_dict(results["config"], out / RESULTS)
    other = changes(plan.config.to_dict(), stored)
    for key, value in head.items():
        continued = key == "seeds" and value[: len(results["seeds"])] == results["seeds"]
        if key != "config" and results.get(key) != value and not continued:
            other.append(f"{key} {value} (it has {results.get(key)})")
            if key == "kind":
                break
    if other:
        raise UserError(f"--out {out}: holds another comparison: {'; '.join(other)}")
    begun = bool(results["runs"]) or any(out.glob(f"seed*/**/{CONFIG}"))
    if begun:
        _check_comparable(plan.config, stored, out)
    continued = {**results, **head}
    if not begun:
        continued["environments"] = [here]
    elif len(results["runs"]) < plan.wanted(results) and not environment.same(
        here, results["environments"][-1]
    ):
        continued["environments"] = [*results["environments"], here]
    if continued != results:
        write_json(out / RESULTS, continued)
    return continued


def _check_comparable(config: Config, stored: Config, out: Path) -> None:
    for key, what in COMPARABLE.items():
        value, before = getattr(config, key), getattr(stored, key)
        if value != before:
            raise UserError(
                f"--out {out}: begun with --{key.replace('_', '-')} {before}, now {value}: {what} "
                "would not be comparable"
            )


def read_results(out: Path) -> dict[str, Any]:
    """results.json of a comparison of any kind.

    Raises:
        UserError: there is none, or it is damaged.
    """
    source = out / RESULTS
    if not source.exists():
        raise UserError(f"{out}: no comparison here (no {RESULTS})")
    results = read_json(source)
    if results.get("format") != FORMAT:
        raise UserError(f"{source}: not the results of a cpfast comparison of this version")
    kind = KINDS.get(str(results.get("kind")))
    if kind is None:
        raise UserError(f"{source}: damaged ('kind' is {results.get('kind')!r})")
    head = {
        "config": dict, "seeds": list, "train_size": int, **kind.HEAD, "environments": list,
        "runs": list,
    }  # fmt: skip
    for key, type_ in head.items():
        if not isinstance(results.get(key), type_):
            raise UserError(f"{source}: damaged ({key!r} is missing or of the wrong type)")
    Config.from_dict(results["config"], source)
    try:
        plan = kind.of(results)
        plan.wanted({**results, "runs": []})
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{source}: damaged ({error})") from error
    places = results["environments"]
    if not places or not all(
        isinstance(e, dict) and set(e) == set(environment.KEYS) for e in places
    ):
        raise UserError(f"{source}: damaged ('environments' is {places!r})")
    seen = set()
    for number, entry in enumerate(results["runs"], 1):
        fault = _fault(entry, kind) or plan.fault(entry)
        if fault is None and entry["seed"] not in plan.seeds:
            fault = f"'seed' is {entry['seed']}, of {results['seeds']}"
        if fault is None:
            identity = tuple(entry[name] for name in kind.KEY)
            fault = f"a second one of {identity}" if identity in seen else None
            seen.add(identity)
        if fault is not None:
            raise UserError(f"{source}: damaged (entry {number} of 'runs': {fault})")
    return results


def _fault(entry: Any, kind: type[Plan]) -> str | None:
    if not isinstance(entry, dict):
        return "not an object"
    for key, types in {**kind.KEY, **kind.OWN, **ENTRY}.items():
        if key not in entry:
            return f"{key!r} is missing"
        if not isinstance(entry[key], types):
            return f"{key!r} is {entry[key]!r}"
    if not all(_numbers(point) and len(point) == 2 for point in entry["curve"]):
        return f"'curve' is {entry['curve']!r}"
    rotation, end = entry["rotation"], entry["period_end"]
    if rotation is not None and not _numbers(rotation):
        return f"'rotation' is {rotation!r}"
    if end is not None and not 1 <= end <= len(rotation or ()):
        return f"'period_end' is {end}, of {len(rotation or ())} epochs with a rotation"
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


def plan_of(results: Mapping[str, Any]) -> Plan:
    return KINDS[results["kind"]].of(results)


def default_folder(plan: Plan) -> Path:
    """The same for the same settings, so that the same command continues."""
    config = plan.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ENVIRONMENT}
    text = json.dumps([plan.KIND, settings, list(plan.seeds), plan.settings()], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    name = report.data_name(config.replace(limit=None))
    verb = "compare" if plan.KIND == "arms" else plan.KIND
    return Path("runs") / f"{verb}-{name}-{config.model}-{digest}"


def check_folder(out: Path) -> None:
    """Leave the folder as it is.

    Raises:
        UserError: it is neither new nor a comparison's.
    """
    if (out / RESULTS).exists():
        return
    if (out / CONFIG).exists():
        raise UserError(f"--out {out}: holds a single run, not a comparison; choose another folder")
    RunFolder(out).check_free()
