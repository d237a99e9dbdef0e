"""What on_gpu.sh does: three calls, each of stages, each of jobs that run in turn or together.

A call takes under ten minutes, is of use alone, and goes on where an earlier one was stopped: what
was done of the same sources on the same GPU is not done again. All that it knows of itself lies in
one folder, a few files a job (NAME.json: how it ended; NAME.log; NAME.xml of tests; NAME.jsonl of
benchmarks), which is stored as <gpu-name>.tar.gz, beside <gpu-name>.json, whenever a job ends.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import archive
import gpu_report
import in_place
import rows
from children import Child, hear_interrupts

ROOT = in_place.ROOT
PYTHON = os.environ.get("PYTHON") or sys.executable
BUDGET = 560  # seconds of a call; what is left of ten minutes is for what comes before and after
LEAST = 10  # seconds under which nothing is begun
STORE_EVERY = 20  # seconds
LOG = 400_000  # bytes of a log's beginning, and of its end
# On one GPU, with so many processors as there are.
TOGETHER = max(1, min(5, (os.cpu_count() or 1) // 3))
NO_TESTS = 5  # exit code of pytest
FILE_LIMIT = 100  # seconds of one file of tests, and of one huge test
# A kernel is cpfast's if its mangled name says so; all others run unwatched, at full speed.
SANITIZER = ["--error-exitcode", "9", "--destroy-on-device-error", "kernel"]
SANITIZER += ["--kernel-name", "kns=cpfast", "--target-processes", "application-only"]
SANITIZER += ["--launch-timeout", "60"]
OPTIONAL = {
    "pybind11": "the build",
    "setuptools": "the build",
    "ninja": "a build on several processors",
    "numpy": "the tests and the rivals that use it",
    "pytest": "all tests and benchmarks",
    "hypothesis": "the tests that draw examples",
    "scipy": "its rotation among the rivals",
    "sklearn": "the tests on digits",
    "matplotlib": "pictures",
    "PIL": "the DataLoader rivals, and the tests that read images",
    "codecarbon": "the energy of training runs",
    "tqdm": "the tests of the command line",
    "triton": "torch.compile's rivals",
}


class Job(NamedTuple):
    """A process. `reads`: files and folders of the checkout that its result depends on."""

    name: str
    command: list[str]
    reads: tuple[str, ...]
    limit: float = float("inf")
    environment: dict[str, str] = {}  # noqa: RUF012


class Stage(NamedTuple):
    """Jobs, `together` at a time, in `limit` seconds and what the stages before left over."""

    name: str
    limit: float
    jobs: list[Job]
    together: int = 1


# --- the plan -------------------------------------------------------------------------------

SOURCES = ("csrc", "setup.py", "cpfast")
OPS = ("layers", "cross-entropy", "elementwise", "selection", "record", "augment")
# By worth. Seconds.
KERNELS = {
    "scored_cross_entropy": 100,
    "layer_statistics": 80,
    "select_samples": 60,
    "augment_batch": 70,
    "record_scores": 25,
    "scored_linear_cross_entropy": 40,
    "scored_elementwise": 20,
    "loss_arguments": 15,
    "small_calls": 10,
    "policies": 20,
}
TRAINING = {"training_loop": 220, "training_step": 80, "step_shapes": 30, "growth": 110}
CALLS = ("tests", "kernels", "training")


def plan(call: str, no_gpu: bool = False) -> list[Stage]:
    build = [PYTHON, "benchmarks/in_place.py", "--cuda"]
    begin = Stage("build", 120, [Job("build", build, ("csrc", "setup.py"))])
    if call == "kernels":
        return [begin, *(bench(name, limit, no_gpu) for name, limit in KERNELS.items())]
    if call == "training":
        return [begin, *(bench(name, limit, no_gpu) for name, limit in TRAINING.items())]
    return [
        begin,
        Stage("ops", 50, ops("ops", no_gpu), TOGETHER),
        Stage("tests", 130, tests(), TOGETHER),
        Stage("memcheck", 90, ops("memcheck", no_gpu), TOGETHER),
        Stage("racecheck", 90, ops("racecheck", no_gpu), TOGETHER),
        Stage("huge", 60, huge_tests()),
    ]


def ops(stage: str, no_gpu: bool) -> list[Job]:
    """A process an op: a fault on the GPU ends a process's CUDA."""
    command = [PYTHON, "benchmarks/on_gpu_ops.py", *(["--no-gpu"] if no_gpu else [])]
    environment = {}
    if stage != "ops":
        command = ["compute-sanitizer", "--tool", stage, *SANITIZER, *command]
        # Without the caching allocator, a read beyond a tensor is one beyond an allocation.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    reads = (*SOURCES, "benchmarks/on_gpu_ops.py")
    return [Job(f"{stage}-{op}", [*command, op], reads, environment=environment) for op in OPS]


def pytest_job(name: str, limit: float, *arguments: str, together: int = 1) -> Job:
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # A test that hangs says where, before it is stopped.
    command += ["-o", f"faulthandler_timeout={limit // 2:.0f}", f"--junitxml={{work}}/{name}.xml"]
    threads = max(1, (os.cpu_count() or 1) // together)
    environment = {"OMP_NUM_THREADS": str(threads)} if together > 1 else {}
    reads = (*SOURCES, "tests")
    return Job(name, [*command, *arguments], reads, limit, environment)


def files_for_gpus() -> list[str]:
    """Test files with a test that is marked `cuda`, or takes the fixture `device`."""
    pattern = re.compile(r"mark\.cuda|^def \w+\([^)]*\bdevice\b", re.M)
    files = sorted(ROOT.glob("tests/**/test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if pattern.search(f.read_text())]


def tests() -> list[Job]:
    select = ("--slow", "-m", "cuda and not huge")
    return [
        pytest_job(
            "-".join(pathlib.Path(file).with_suffix("").parts),
            FILE_LIMIT,
            *select,
            file,
            together=TOGETHER,
        )
        for file in files_for_gpus()
    ]


def huge_tests() -> list[Job]:
    """Each takes a good part of the GPU's memory, and so runs alone."""
    found = re.compile(r"mark\.huge\n(?:@.*\n)*def (test_\w+)")
    return [
        pytest_job(f"huge-{name}", FILE_LIMIT, "-m", "cuda", f"{file.relative_to(ROOT)}::{name}")
        for file in sorted(ROOT.glob("tests/**/test_*.py"))
        for name in found.findall(file.read_text())
    ]


def bench(name: str, limit: float, no_gpu: bool) -> Stage:
    job = f"bench_{name}"
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"benchmarks/{job}.py"]
    command += ["-k", "cuda", "-o", f"faulthandler_timeout={limit // 2:.0f}"]
    command += ["--rows={work}/" + job + ".jsonl", "--seconds={seconds}"]
    command += ["--rehearse"] if no_gpu else []
    return Stage(job, limit, [Job(job, command, (*SOURCES, "benchmarks"))])


# --- one call -------------------------------------------------------------------------------


class Call:
    """Runs a plan, and keeps what became of it.

    Args:
        work: folder with a few files a job.
        out: folder of the JSON and the archive.
        name: what the two are named after.
    """

    def __init__(self, call: str, work: pathlib.Path, out: pathlib.Path, name: str) -> None:
        self.call, self.work, self.out, self.name = call, work, out, name
        self.begun = self._stored = time.monotonic()
        self.not_built = False
        self._running: list[tuple[Job, Child]] = []
        self._left: dict[str, int] = {}

    def run(self, stages: list[Stage], budget: float) -> None:
        """Limits are shares of the budget where it is another than `BUDGET`."""
        scale, share = budget / BUDGET, 0.0
        for stage in stages:
            share += stage.limit * scale
            self._stage(stage, self.begun + min(share, budget), scale)
            if stage.name == "build" and self.row("build").get("status") != "done":
                # All others would only say so once more.
                self.not_built = True
                return

    def row(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.work / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}

    def _stage(self, stage: Stage, end: float, scale: float) -> None:
        waiting = [job for job in stage.jobs if self._begin(job)]
        done = len(stage.jobs) - len(waiting)
        if done:
            say(f"== {stage.name}: {done} of {len(stage.jobs)} done earlier")
        if not waiting:
            return
        say(f"== {stage.name}, until {end - self.begun:.0f} s")
        while waiting or self._running:
            while waiting and len(self._running) < stage.together:
                self._start(waiting.pop(0), end, scale)
            for job, child in self._running[:]:
                code = child.poll()
                if code is not None:
                    self._running.remove((job, child))
                    if self._ended(job, child, code):
                        waiting.insert(0, job)
            if time.monotonic() - self._stored > STORE_EVERY:
                self.store()
            time.sleep(0.05)

    def _begin(self, job: Job) -> bool:
        """Whether it is to be done; then nothing older is left of it but what was measured."""
        earlier, source = self.row(job.name), in_place.digest(*job.reads)
        # What is built is not stored: in_place.py itself sees whether it is there.
        done = earlier.get("status") == "done" and earlier.get("source") == source
        if done and job.name != "build":
            return False
        measured = self.work / f"{job.name}.jsonl"
        for path in self.work.glob(f"{job.name}.*"):
            if path != measured or earlier.get("source") != source:
                path.unlink()
        rows.settle(measured)
        # Now, so that what is measured counts though nothing says any more how it ended.
        self._note(job, "cut", source=source)
        return True

    def _start(self, job: Job, end: float, scale: float) -> None:
        now = time.monotonic()
        seconds = min(end - now, job.limit * scale)
        if seconds < LEAST:
            return
        if shutil.which(job.command[0]) is None:
            self._note(job, "not installed")
            say(f"   {job.name}: {job.command[0]} is not installed")
            self.store()
            return
        values = {"{work}": str(self.work), "{seconds}": f"{max(1, seconds - 15):.0f}"}
        command = [filled(argument, values) for argument in job.command]
        log = self.work / f"{job.name}.log"
        end = now + seconds
        child = Child(command, end=end, environment=job.environment, folder=ROOT, log=log)
        self._running.append((job, child))

    def _ended(self, job: Job, child: Child, code: int) -> bool:
        """Whether it is to go on in another process: a fault has ended this one, or its CUDA."""
        clip(self.work / f"{job.name}.log")
        status, again = self._judge(job, code, child.interrupted)
        seconds = time.monotonic() - child.begun
        before = self.row(job.name).get("seconds", 0)
        self._note(job, status, exit=code, seconds=round(before + seconds, 1))
        say(f"   {job.name}: {status}, {seconds:.0f} s" + (f" (exit {code})" if code else ""))
        if status == "failed":
            say("\n".join(f"      {line}" for line in tail(self.work / f"{job.name}.log", 12)))
        self.store()
        return again

    def _judge(self, job: Job, code: int, stopped: bool) -> tuple[str, bool]:
        """What became of it; whether to go on."""
        measured = self.work / f"{job.name}.jsonl"
        left = rows.left(measured)
        states = {row["state"] for row in rows.read(measured).values()}
        # Of those that are left there must be fewer each time: no case is tried twice.
        before = self._left.get(job.name, len(left) + 1)
        self._left[job.name] = len(left)
        if stopped:
            return "cut", False
        if states & {"failed", "begun"}:
            return "failed", "cut" not in states and 0 < len(left) < before
        if states and code in (0, NO_TESTS):
            return "cut" if left else "done", False
        # Of a file without a test for this machine pytest says that, too.
        done = code == 0 or (code == NO_TESTS and "pytest" in job.command)
        return "done" if done else "failed", bool(states) and 0 < len(left) < before

    def _note(self, job: Job, status: str, **more: Any) -> None:
        row = {"exit": None, "seconds": 0, **self.row(job.name)}
        row |= {"name": job.name, "call": self.call, "status": status, **more}
        archive.replace(self.work / f"{job.name}.json", json.dumps(row).encode())

    def store(self) -> None:
        self._stored = time.monotonic()
        archive.pack(self.work, self.out / f"{self.name}.tar.gz")
        text = json.dumps(gpu_report.assemble(self.work), indent=1) + "\n"
        archive.replace(self.out / f"{self.name}.json", text.encode())

    def stop(self) -> None:
        for _, child in self._running:
            child.interrupt()
        for _, child in self._running:
            child.wait()


def filled(argument: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        argument = argument.replace(name, value)
    return argument


def say(text: str) -> None:
    print(text.rstrip("\n"), flush=True)


def tail(path: pathlib.Path, count: int) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-count:] if path.exists() else []


def clip(path: pathlib.Path) -> None:
    if path.exists() and path.stat().st_size > 2 * LOG:
        content = path.read_bytes()
        path.write_bytes(content[:LOG] + b"\n... cut ...\n" + content[-LOG:])


# --- the command ----------------------------------------------------------------------------


def show(stages: list[Stage]) -> Iterator[str]:
    for stage in stages:
        jobs = f"{len(stage.jobs)} jobs, {stage.together} at a time" if len(stage.jobs) > 1 else ""
        yield f"{stage.name:<28} at most {stage.limit:3.0f} s{': ' if jobs else ''}{jobs}"
        for job in stage.jobs:
            settings = [f"{k}={v}" for k, v in job.environment.items()]
            yield f"  {job.name}: {shlex.join([*settings, *job.command])}"
    yield f"all in all {sum(stage.limit for stage in stages):.0f} s of {BUDGET}"


def find_gpu(no_gpu: bool) -> dict[str, Any]:
    """What gpu_report.py says of the machine; "name" is that of the files."""
    found = subprocess.run(
        [PYTHON, "benchmarks/gpu_report.py", "--machine"], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"exit {found.returncode}"])[-1]
        if "No module named 'torch'" in last:
            last = "torch is missing: install a CUDA build of torch >= 2.11"
        stop(last)
    machine = json.loads(found.stdout)
    if no_gpu:
        machine["name"] = "no GPU"
    elif "name" not in machine:
        stop(f"torch {machine['torch']} sees no CUDA GPU")
    for module in machine["missing"]:
        say(f"on_gpu.sh: {module} is missing: {OPTIONAL[module]} cannot be had")
    return machine


def resume(work: pathlib.Path, archives: list[pathlib.Path], gpu: str) -> None:
    """Earlier results of the same GPU; of equal names the last ones count."""
    for path in archives:
        with tempfile.TemporaryDirectory() as folder:
            there = pathlib.Path(folder)
            archive.unpack(path, there)
            other = gpu_report.machine(there).get("name")
            if other != gpu:
                say(f"on_gpu.sh: {path} is of {other}, and this is {gpu}: left alone")
                continue
            (there / "machine.json").unlink()
            shutil.copytree(there, work, dirs_exist_ok=True)


def stop(message: str) -> None:
    sys.exit(f"on_gpu.sh: {message}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/on_gpu.sh")
    add = parser.add_argument
    rehearsal = "rehearse without a GPU: build, import and collect everything, launch nothing"
    more = "results of an earlier call, of another folder, to go on from; may be given again"
    add("call", choices=CALLS)
    add("--dry-run", action="store_true", help="print the plan")
    add("--no-gpu", action="store_true", help=rehearsal)
    add("--again", action="store_true", help="also what was done earlier")
    add("--resume", type=pathlib.Path, action="append", default=[], metavar="F.tar.gz", help=more)
    add("--budget-seconds", type=float, default=BUDGET)
    options = parser.parse_args(arguments)
    stages = plan(options.call, options.no_gpu)
    if options.dry_run:
        print("\n".join(show(stages)))
        return 0
    hear_interrupts()
    out = pathlib.Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    machine = find_gpu(options.no_gpu)
    name = gpu_report.file_name(machine["name"])
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        here = out / f"{name}.tar.gz"
        known = [*options.resume, *([here] if archive.volumes(here) else [])]
        try:
            resume(work, known, machine["name"])
        except ValueError as error:
            stop(str(error))
        if options.again:
            for stage in stages:
                for job in stage.jobs:
                    for path in work.glob(f"{job.name}.*"):
                        path.unlink()
        (work / "machine.json").write_text(json.dumps(machine))
        call = Call(options.call, work, out, name)
        call.begun = begun
        try:
            call.run(stages, options.budget_seconds)
        except KeyboardInterrupt:
            call.stop()
            say("on_gpu.sh: interrupted; what is done is kept")
            return 130
        finally:
            call.store()
        print("\n".join(gpu_report.summary(gpu_report.assemble(work))))
        say(f"{out / name}.json: python -m benchmarks.table prints it")
        return 1 if call.not_built else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
