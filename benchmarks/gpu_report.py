"""What the calls of on_gpu.sh came to, as one JSON, for `python -m benchmarks.table`:

gpu_report.py OUT FILE.tar.gz...   merges the archives of several calls into OUT/<gpu-name>.json
gpu_report.py --machine            prints what this machine is, and which packages it lacks
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from typing import Any

import archive
import rows

QUERY = [
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "persistence_mode",
]
LAST_LINES = 20


def describe(modules: tuple[str, ...]) -> dict[str, Any]:
    """What nvidia-smi and torch say of the first GPU, of which nothing is changed; "name" only
    where torch sees it. "missing" are those of the modules that are not installed.
    """
    import rivals
    import torch

    query = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    found: dict[str, Any] = {}
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        values = [value.strip() for value in answer.stdout.splitlines()[0].split(",")]
        found = dict(zip(QUERY, values, strict=True))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        found = {"nvidia-smi": f"failed: {error}"}
    found.pop("name", None)
    found |= {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    found |= {"cpu": cpu(), "processors": os.cpu_count(), "rivals": rivals.installed()}
    found["missing"] = [m for m in modules if importlib.util.find_spec(m) is None]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["name"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = str(properties.multi_processor_count)
        found["l2_bytes"] = str(properties.L2_cache_size)
    return found


def cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"


def file_name(gpu_name: str) -> str:
    """Without a suffix."""
    return re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-")


def machine(work: pathlib.Path) -> dict[str, Any]:
    path = work / "machine.json"
    return json.loads(path.read_text()) if path.exists() else {}


def parts(work: pathlib.Path) -> list[dict[str, Any]]:
    """What ran, for how many seconds; of what was not done, its last lines too."""
    found = []
    for path in sorted(work.glob("*.json"), key=lambda p: p.stat().st_mtime):
        if path.name == "machine.json":
            continue
        row = json.loads(path.read_text())
        log = path.with_suffix(".log")
        if row["status"] != "done" and log.exists():
            # Without the checkout's path, which is nobody's business.
            text = log.read_text(errors="replace").replace(f"{pathlib.Path.cwd()}/", "")
            row["log"] = text.splitlines()[-LAST_LINES:]
        found.append(row)
    return found


def tests(work: pathlib.Path) -> dict[str, Any] | None:
    """Counts of all JUnit files, and the names of what failed; None where there is none.

    A file of tests whose process died has none: `parts` says so.
    """
    suites = []
    for path in sorted(work.glob("*.xml")):
        try:
            suites += ET.parse(path).getroot().iter("testsuite")
        except ET.ParseError:
            continue
    if not suites:
        return None
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    failed = []
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
        for case in suite.iter("testcase"):
            for problem in (*case.iter("failure"), *case.iter("error")):
                name = f"{case.get('classname')}::{case.get('name')}"
                failed.append({"name": name, "message": problem.get("message", "")[:300]})
    wrong = counts["failures"] + counts["errors"] + counts["skipped"]
    return {**counts, "passed": counts["tests"] - wrong, "failed": failed}


def sanitizer(work: pathlib.Path, tool: str) -> dict[str, Any] | None:
    """By op, the tool's own summary lines, and its errors; None where it did not run."""
    found = {}
    for log in sorted(work.glob(f"{tool}-*.log")):
        lines = log.read_text(errors="replace").splitlines()
        summary = [line for line in lines if "SUMMARY" in line]
        errors = [line for line in lines if line.startswith("=========") and "rror" in line]
        errors = [e for e in errors if "SUMMARY" not in e][:LAST_LINES]
        found[log.stem.removeprefix(f"{tool}-")] = {"summary": summary, "errors": errors}
    return found or None


def assemble(work: pathlib.Path) -> dict[str, Any]:
    """As pytest-benchmark's JSON, of all benchmarks, with the GPU, the parts and the tests."""
    gpu = machine(work)
    info: dict[str, Any] = {"cpu": {"brand_raw": gpu.pop("cpu", "CPU")}}
    info["cpu"]["count"] = gpu.pop("processors", "?")
    info |= {"torch": gpu["torch"]} if "torch" in gpu else {}
    info |= {"gpu": gpu["name"]} if "capability" in gpu else {}
    measured = {path.stem: rows.read(path) for path in sorted(work.glob("bench_*.jsonl"))}
    every = [row for found in measured.values() for row in found.values()]
    # Each process measured its own bandwidth; a record's fraction is of its process's.
    by_file = {name: rows.merge(found.values())["bandwidth"] for name, found in measured.items()}
    return {
        "machine_info": info,
        "rivals": gpu.pop("rivals", {}),
        "gpu": gpu,
        "parts": parts(work),
        "tests": tests(work),
        "sanitizer": {tool: sanitizer(work, tool) for tool in ("memcheck", "racecheck")},
        "bandwidth_by_file": by_file,
        **rows.merge(every),
    }


def summary(results: dict[str, Any]) -> list[str]:
    lines = [f"{p['name']:36} {p['status']:14} {p['seconds']:5.0f} s" for p in results["parts"]]
    counts = results["tests"]
    if counts:
        names = ("passed", "failures", "errors", "skipped")
        lines.append(f"tests: {', '.join(f'{counts[n]} {n}' for n in names)}")
    return lines


def merge(out: pathlib.Path, archives: list[pathlib.Path]) -> pathlib.Path:
    """Of parts that several archives have, the last one's counts.

    Raises:
        ValueError: an archive is missing or damaged, or they are of several GPUs.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        names = []
        for path in archives:
            archive.unpack(path, work)
            names.append(machine(work).get("name", "?"))
        if len(set(names)) > 1:
            raise ValueError(f"these are of several GPUs: {', '.join(sorted(set(names)))}")
        path = out / f"{file_name(names[0])}.json"
        archive.replace(path, (json.dumps(assemble(work), indent=1) + "\n").encode())
    return path


def main(arguments: list[str]) -> None:
    if arguments == ["--machine"]:
        from gpu_calls import OPTIONAL

        print(json.dumps(describe(tuple(OPTIONAL))))
        return
    if len(arguments) < 2:
        sys.exit("usage: gpu_report.py OUT FILE.tar.gz... | --machine")
    out, *archives = map(pathlib.Path, arguments)
    try:
        print(merge(out, archives))
    except ValueError as error:
        sys.exit(f"gpu_report.py: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
