"""results.json of a comparison: opened, checked, continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpfast.train import report
from cpfast.train.compare.comparison import Comparison
from cpfast.train.compare.falsify import Falsification
from cpfast.train.compare.oracle import Oracle
from cpfast.train.compare.plan import ENTRY, RESULTS, Entry, MakeProgress, Plan, Runner
from cpfast.train.config import ENVIRONMENT, Config, changes
from cpfast.train.data import ImageData, TextData
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder, read_json, write_json

FORMAT = "cpfast-compare-2"
KINDS: dict[str, type[Plan]] = {kind.KIND: kind for kind in (Comparison, Falsification, Oracle)}


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
        settings, and "runs".

    Raises:
        UserError: `out` holds another comparison.
    """
    results = open_results(plan, data.train_size, out)
    plan.run(Runner(out, data, results, progress, finished))
    return results


def open_results(plan: Plan, train_size: int, out: Path) -> dict[str, Any]:
    """The results in `out`, or new ones.

    Raises:
        UserError: `out` holds another comparison, or something else; a batch is larger than the
            data.
    """
    if plan.largest_batch() > train_size:
        # Said now, and not after the first hours.
        raise UserError(
            f"a batch of {plan.largest_batch()}, the largest of this comparison, is more than the "
            f"{train_size} samples to train on; use a smaller --batch-size"
        )
    head = {
        "kind": plan.KIND, "config": plan.config.to_dict(), "seeds": list(plan.seeds),
        "train_size": train_size, **plan.settings(),
    }  # fmt: skip
    if not (out / RESULTS).exists():
        results = {"format": FORMAT, **head, "runs": []}
        write_json(out / RESULTS, results)
        return results
    results = read_results(out)
    other = changes(head.pop("config"), Config.from_dict(results["config"], out / RESULTS))
    for key, value in head.items():
        if results.get(key) != value:
            other.append(f"{key} {value} (it has {results.get(key)})")
            if key == "kind":
                break
    if other:
        raise UserError(f"--out {out}: holds another comparison: {'; '.join(other)}")
    return results


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
    head = {"config": dict, "seeds": list, "train_size": int, **kind.HEAD, "runs": list}
    for key, type_ in head.items():
        if not isinstance(results.get(key), type_):
            raise UserError(f"{source}: damaged ({key!r} is missing or of the wrong type)")
    Config.from_dict(results["config"], source)
    for number, entry in enumerate(results["runs"], 1):
        fault = _fault(entry, {**kind.KEY, **ENTRY})
        if fault is not None:
            raise UserError(f"{source}: damaged (entry {number} of 'runs': {fault})")
    return results


def _fault(entry: Any, keys: dict[str, tuple[type, ...]]) -> str | None:
    if not isinstance(entry, dict):
        return "not an object"
    for key, types in keys.items():
        if key not in entry:
            return f"{key!r} is missing"
        if not isinstance(entry[key], types):
            return f"{key!r} is {entry[key]!r}"
    if entry["diverged"] is None and entry["epochs"] < 1:
        return "no epoch, and not diverged"
    return None


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
    if not (out / RESULTS).exists():
        RunFolder(out).check_free()
