"""What headline.sh does: comparisons in turn, within a budget, to be continued elsewhere."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import archive
import in_place
from children import Child, hear_interrupts

FRONTIER = ("--budgets", "10", "20", "40", "--trials", "4", "--folds", "2")
EXPERIMENTS = {
    "resnet20": ("compare", "--model", "resnet20"),
    "resnet56": ("compare", "--model", "resnet56"),
    "falsify": ("study", "falsify", "--model", "resnet20"),
    "oracle": ("study", "oracle", "--model", "resnet20"),
    # of critical periods (docs/studies.md)
    **{
        name: ("study", name, "--model", "resnet20")
        for name in ("deficit", "window", "warm-start", "early-phase", "enlightenment")
    },
    # what is better than ordinary training, tuned as well, at the same cost
    **{
        f"frontier-{model}": ("study", "frontier", "--model", model, *FRONTIER)
        for model in ("resnet20", "resnet56")
    },
}
ARMS = "full,detector,k1,k1_matched,shortened,rs2,infobatch,k1+infobatch,detector+infobatch"
PACK_EVERY = 60.0  # seconds, lest all be lost where the machine stops us
GRACE = 20.0  # seconds in which an interrupted comparison stores what it has
INTERRUPTED = 130


def command() -> tuple[list[str], dict[str, str]]:
    """How to call cpfast, and the environment for it: installed, or built here."""
    if not os.environ.get("PYTHON") and (installed := shutil.which("cpfast")):
        return [installed], {}
    builder = [sys.executable, str(in_place.ROOT / "benchmarks" / "in_place.py")]
    # To stderr, where it does not mix with the comparison's tables.
    built = subprocess.run([*builder, *(["--cuda"] if on_gpu() else [])], stdout=sys.stderr)
    if built.returncode:
        stop("cpfast is not installed, and could not be built")
    path = os.pathsep.join(filter(None, [str(in_place.ROOT), os.environ.get("PYTHONPATH", "")]))
    return [sys.executable, "-m", "cpfast"], {"PYTHONPATH": path}


def on_gpu() -> bool:
    return os.environ.get("DEVICE", "cuda:0") != "cpu"


def settings() -> list[str]:
    found = {
        "--epochs": ("EPOCHS", "200"),
        "--seeds": ("SEEDS", "3"),
        "--device": ("DEVICE", "cuda:0"),
    }
    given = [
        x for option, (name, other) in found.items() for x in (option, os.environ.get(name, other))
    ]
    return [
        "--batch-size",
        "256",
        "--lr",
        "0.08",
        *given,
        *(["--step", "compile+graph"] if on_gpu() else []),
    ]


def unpacked(data: pathlib.Path) -> pathlib.Path:
    """The folder that a .tar held, where downloads are kept too.

    Its place is the same on every machine with such a place: a comparison knows its data by it.
    """
    cache = os.environ.get("CPFAST_DATA") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cpfast"
    )
    content = hashlib.sha256(data.read_bytes()).hexdigest()[:8]
    folder = (
        pathlib.Path(cache).expanduser() / f"unpacked-{content}" / data.name.partition(".tar")[0]
    )
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}{archive.TEMPORARY}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with tarfile.open(data) as packed:
                archive.extract(packed, partial)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            stop(f"{data}: cannot be unpacked ({archive.first_line(error)})")
        partial.rename(folder)
    return folder


def stored_runs(results: dict[str, Any]) -> Iterator[str]:
    """Folders of runs whose checkpoint is needed no more: their results are stored.

    But full's while an arm of its seed is to come, for one that never forks from full earlier
    forks from its end.
    """
    runs = results["runs"]
    for run in runs:
        seed = f"seed{run['seed']}"
        if results["kind"] == "arms":
            come = {r["arm"] for r in runs if r["seed"] == run["seed"]}
            if run["arm"] != "full" or come >= set(results["arms"]):
                yield f"{seed}/{run['arm']}"
        elif results["kind"] == "oracle":
            yield f"{seed}/{run['setting']}/switch{run['switch']}"
        elif results["kind"] == "frontier":
            if run["fold"] < 0:  # tuned by, they are gone already
                yield f"{seed}/{run['arm']}@{run['budget']}/final".replace(":", "-")
        elif results["kind"] == "falsify":
            point = (
                f"batch{run['batch_size']}-decay{run['weight_decay']}-epochs{run['total_epochs']}"
            )
            yield f"{seed}/{point}-{run['labels']}"


def pack(out: pathlib.Path, path: pathlib.Path) -> None:
    left_out = set()
    for results in out.glob("*/results.json"):
        folder = results.parent.name
        left_out |= {
            f"{folder}/{run}/last.pt" for run in stored_runs(json.loads(results.read_text()))
        }

    def wanted(name: str) -> bool:
        return not name.endswith(".lock") and name not in left_out

    archive.pack(out, path, wanted)


def compare(
    arguments: list[str],
    out: pathlib.Path,
    options: argparse.Namespace,
    end: float,
    environment: dict[str, str],
) -> int:
    child = Child(arguments, end=end, environment=environment, grace=GRACE)
    packed = time.monotonic()
    try:
        while (code := child.poll()) is None:
            time.sleep(0.1)
            if options.pack and time.monotonic() - packed > PACK_EVERY:
                pack(out, options.pack)
                packed = time.monotonic()
    except KeyboardInterrupt:
        child.interrupt()
        child.wait()
        code = INTERRUPTED
    finally:
        if options.pack:
            pack(out, options.pack)
    return INTERRUPTED if child.interrupted else code


def stop(message: str) -> None:
    sys.exit(f"headline.sh: {message}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/headline.sh")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), metavar="N")
    parser.add_argument("--pack", type=lambda p: pathlib.Path(p).resolve(), metavar="FILE.tar.gz")
    parser.add_argument("--resume", type=pathlib.Path, metavar="FILE.tar.gz")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.budget_seconds
    for name in options.experiments:
        if name not in EXPERIMENTS:
            parser.error(f"no experiment {name!r}, only {', '.join(EXPERIMENTS)}")
    hear_interrupts()
    out = pathlib.Path(os.environ.get("OUT") or "runs/headline").resolve()
    if options.resume:
        if any(out.glob("*/results.json")):
            print(
                f"headline.sh: {out} holds results already, which go on; {options.resume} is left"
            )
        else:
            try:
                archive.unpack(options.resume, out)
            except ValueError as error:
                stop(str(error))
    program, environment = command()
    data = pathlib.Path(options.data)
    packed = ".tar" in data.suffixes and data.is_file()
    source = str(unpacked(data)) if packed else options.data
    for name in options.experiments or EXPERIMENTS:
        if time.monotonic() > end:
            print(f"== {name}: no time left; run again to go on", flush=True)
            continue
        print(f"== {name}", flush=True)
        more = [*EXPERIMENTS[name], *(["--arms", ARMS] if name.startswith("resnet") else [])]
        line = [*program, *more, "--data", source, *settings(), "--out", str(out / name)]
        code = compare(line, out, options, end, environment)
        if code == INTERRUPTED:
            print(f"== {name}: stopped; run again to go on", flush=True)
            if time.monotonic() < end:
                return INTERRUPTED
        elif code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
