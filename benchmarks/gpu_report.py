"""Puts what on_gpu.sh left in its work folder into one JSON: gpu_report.py WORK OUT."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

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


def gpu() -> dict[str, str]:
    """What nvidia-smi and torch say of the first GPU; nothing of it is changed."""
    import torch

    query = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        values = [value.strip() for value in answer.stdout.splitlines()[0].split(",")]
        found = dict(zip(QUERY, values, strict=True))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        found = {"nvidia-smi": f"failed: {error}"}
    found |= {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["name"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = str(properties.multi_processor_count)
        found["l2_bytes"] = str(properties.L2_cache_size)
    return found


def file_name(gpu_name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-") + ".json"


def parts(work: pathlib.Path) -> list[dict[str, Any]]:
    """What ran, for how many seconds of its limit; of what was not done, its last lines too."""
    rows = []
    table = work / "parts.tsv"
    for line in table.read_text().splitlines() if table.exists() else []:
        name, status, code, took, limit = line.split("\t")
        row = {"name": name, "status": status, "exit": int(code) if code else None}
        row |= {"seconds": int(took), "limit": int(limit)}
        log = work / f"{name}.log"
        if status != "done" and log.exists():
            # Without the checkout's path, which is nobody's business.
            text = log.read_text(errors="replace").replace(f"{pathlib.Path.cwd()}/", "")
            row["log"] = text.splitlines()[-LAST_LINES:]
        rows.append(row)
    return rows


def tests(work: pathlib.Path) -> dict[str, Any] | None:
    """Counts of a JUnit file, and the names of what failed; None where there is none."""
    path = work / "tests.xml"
    try:
        suites = list(ET.parse(path).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):
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
    """The tool's own summary lines, and its errors; None where it did not run."""
    log = work / f"{tool}.log"
    if not log.exists():
        return None
    lines = log.read_text(errors="replace").splitlines()
    summary = [line for line in lines if "SUMMARY" in line]
    errors = [line for line in lines if line.startswith("=========") and "rror" in line]
    return {"summary": summary, "errors": [e for e in errors if "SUMMARY" not in e][:LAST_LINES]}


def assemble(work: pathlib.Path, gpu: dict[str, str]) -> dict[str, Any]:
    """One pytest-benchmark JSON of all of them, with the GPU, the parts and the tests."""
    merged: dict[str, Any] = {"machine_info": {}, "bandwidth": {}, "rivals": {}, "notes": {}}
    merged |= {"gpu": gpu, "parts": parts(work), "tests": tests(work)}
    merged["sanitizer"] = {tool: sanitizer(work, tool) for tool in ("memcheck", "racecheck")}
    benchmarks: list[dict[str, Any]] = []
    measured: dict[str, dict[str, Any]] = {}
    for path in sorted(work.glob("bench_*.json")):
        try:
            results = json.loads(path.read_text())
        except ValueError:
            # Cut while it was written.
            continue
        benchmarks += results["benchmarks"]
        for name in ("machine_info", "commit_info", "datetime", "version", "rivals"):
            merged[name] = results.get(name, {})
        merged["notes"] |= results.get("notes", {})
        # Each process measured its own; a record's fraction is of its process's.
        measured[path.stem] = results.get("bandwidth", {})
        merged["bandwidth"] |= results.get("bandwidth", {})
    return {**merged, "bandwidth_by_file": measured, "benchmarks": benchmarks}


def main(work: pathlib.Path, out: pathlib.Path) -> None:
    found = gpu()
    path = out / file_name(found.get("name", "gpu"))
    results = assemble(work, found)
    path.write_text(json.dumps(results, indent=1) + "\n")
    for part in results["parts"]:
        print(f"{part['name']:28} {part['status']:14} {part['seconds']:4} s")
    counts = results["tests"]
    if counts:
        print("tests:", ", ".join(f"{counts[n]} {n}" for n in ("passed", "failures", "errors")))
    print(f"{path}: python -m benchmarks.table prints it")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: gpu_report.py WORK OUT")
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
