"""on_gpu.sh: its plan, what it does where parts fail, hang or are killed, and its one JSON."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def siblings(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def on_gpu(*arguments, **environment):
    return subprocess.run(
        ["bash", str(BENCHMARKS / "on_gpu.sh"), *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# The plan


def test_every_call_fits_into_ten_minutes():
    import children
    import gpu_calls

    for call in gpu_calls.CALLS:
        stages = gpu_calls.plan(call)
        assert stages[0].name == "build"
        assert sum(stage.limit for stage in stages) <= gpu_calls.BUDGET
        names = [job.name for stage in stages for job in stage.jobs]
        assert len(set(names)) == len(names)
    # To begin, to stop the last part, and to store it.
    assert gpu_calls.BUDGET + children.GRACE <= 600 - 30


def test_the_calls_name_every_benchmark_op_and_sanitizer():
    import gpu_calls
    import on_gpu_ops

    jobs = {job.name for call in gpu_calls.CALLS for s in gpu_calls.plan(call) for job in s.jobs}
    assert {path.stem for path in BENCHMARKS.glob("bench_*.py")} < jobs
    assert set(gpu_calls.OPS) == set(on_gpu_ops.OPS)
    for stage in ("ops", "memcheck", "racecheck"):
        assert {f"{stage}-{op}" for op in gpu_calls.OPS} < jobs


def test_every_test_for_a_gpu_is_in_the_plan():
    import gpu_calls

    # From elsewhere: `python -m` would import the checkout's cpfast, which may not be built.
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "cuda", "-p",
         "no:cacheprovider", str(ROOT / "tests")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = [line for line in collected.stdout.splitlines() if "::" in line]
    assert len(names) > 50, collected.stdout + collected.stderr
    assert {name.partition("::")[0] for name in names} <= set(gpu_calls.files_for_gpus())


def test_the_huge_tests_run_alone_and_last():
    import gpu_calls

    *_, tests, _, _, huge = gpu_calls.plan("tests")
    assert (tests.name, huge.name, huge.together) == ("tests", "huge", 1)
    assert {job.name for job in huge.jobs} == {
        "huge-test_more_than_two_to_the_31_elements", "huge-test_more_samples_than_2_to_the_31",
    }  # fmt: skip
    assert all("cuda and not huge" in job.command for job in tests.jobs)


def test_processes_of_tests_tell_where_they_hang_and_sanitizers_go_on_after_an_error():
    import gpu_calls

    for call in gpu_calls.CALLS:
        for stage in gpu_calls.plan(call):
            for job in stage.jobs:
                line = " ".join(job.command)
                assert ("pytest" in line) == ("faulthandler_timeout=" in line)
                if "compute-sanitizer" in line:
                    assert "--destroy-on-device-error kernel --kernel-name kns=cpfast" in line
                    assert job.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_the_filter_of_the_sanitizers_finds_every_kernel():
    """It looks for "cpfast" in the mangled name, which the namespace puts there."""
    files = [*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.h")]
    kernels = [path for path in files if "__global__" in path.read_text()]
    assert len(kernels) >= 5
    for path in kernels:
        text = path.read_text()
        assert re.search(r"^namespace cpfast", text, re.M).start() < text.index("__global__")


def test_a_dry_run_prints_the_plan():
    out = on_gpu("kernels", "--dry-run")
    assert out.returncode == 0, out.stderr
    assert "bench_layer_statistics       at most" in out.stdout
    assert out.stdout.splitlines()[-1].startswith("all in all ")


# A call, of small parts


def shell(name, script, **options):
    from gpu_calls import Job

    return Job(name, ["sh", "-c", script], ("setup.py",), **options)


@pytest.fixture
def call(tmp_path, monkeypatch):
    import children
    import gpu_calls

    monkeypatch.setattr(gpu_calls, "LEAST", 0)
    monkeypatch.setattr(children, "GRACE", 0.2)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir(), out.mkdir()
    (work / "machine.json").write_text(json.dumps({"name": "Some GPU", "torch": "2.11.0"}))

    def make():
        return gpu_calls.Call("tests", work, out, "some-gpu")

    return make


def statuses(call):
    parts = json.loads((call.out / "some-gpu.json").read_text())["parts"]
    return {part["name"]: part["status"] for part in parts}


def test_what_fails_stops_nothing_and_is_told_with_its_last_lines(call, capsys):
    from gpu_calls import Stage

    here = call()
    parts = [shell("a", "seq 30; exit 3"), shell("b", "kill -SEGV $$"), shell("c", "true")]
    missing = shell("d", "")._replace(command=["no-such-tool"])
    here.run([Stage("parts", 500, [*parts, missing])], 560)
    assert statuses(here) == {"a": "failed", "b": "failed", "c": "done", "d": "not installed"}
    results = json.loads((here.out / "some-gpu.json").read_text())
    first = next(part for part in results["parts"] if part["name"] == "a")
    assert first["exit"] == 3 and first["log"] == [str(i) for i in range(11, 31)]
    assert "   a: failed, 0 s (exit 3)" in capsys.readouterr().out


def test_parts_run_together_as_far_as_allowed(call):
    from gpu_calls import Stage

    # Each waits until the other has begun.
    meet = "touch {}; for i in $(seq 300); do [ -e {} ] && exit 0; sleep .1; done; exit 1"
    here = call()
    met = [shell("a", meet.format("{work}/x", "{work}/y")),
           shell("b", meet.format("{work}/y", "{work}/x"))]  # fmt: skip
    # Each fails if another is there.
    alone = "mkdir {work}/alone && sleep .1 && rmdir {work}/alone"
    ones = [shell(name, alone) for name in "cde"]
    here.run([Stage("met", 200, met, together=2), Stage("ones", 200, ones)], 560)
    assert statuses(here) == dict.fromkeys("abcde", "done")


def test_what_outlasts_its_limit_is_cut_with_all_that_it_started(call, tmp_path):
    from gpu_calls import Stage

    deaf = f"trap '' INT; (trap '' INT; echo $$ > {tmp_path}/pid; sleep 300) & sleep 300"
    here = call()
    begun = time.monotonic()
    here.run([Stage("deaf", 1, [shell("deaf", deaf)]), Stage("next", 100, [shell("a", "")])], 560)
    assert time.monotonic() - begun < 100
    assert statuses(here) == {"deaf": "cut", "a": "done"}
    group = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not (found := alive(group)):
            break
        time.sleep(0.1)
    assert not found


def alive(number, field="group"):
    """Processes of a group, or a session, that have not ended."""
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, *ids = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        found += (
            [int(status.parent.name)]
            if state != "Z" and int(ids[field == "session"]) == number
            else []
        )
    return found


def test_what_a_part_leaves_over_is_the_next_ones(call):
    from gpu_calls import Stage

    here = call()
    here.run([Stage("a", 100, [shell("a", "true")]), Stage("b", 1, [shell("b", "sleep 2")])], 560)
    assert statuses(here) == {"a": "done", "b": "done"}


def test_what_there_is_no_time_for_is_named(call, monkeypatch):
    import gpu_calls

    here = call()
    monkeypatch.setattr(gpu_calls, "LEAST", 10)
    here.run([gpu_calls.Stage("a", 5, [shell("a", "true")])], 560)
    here.store()
    assert statuses(here) == {"a": "cut"}


def test_without_a_build_nothing_else_is_tried(call):
    from gpu_calls import Stage

    here = call()
    here.run([Stage("build", 9, [shell("build", "exit 1")]), Stage("a", 9, [shell("a", "")])], 560)
    assert here.not_built and statuses(here) == {"build": "failed"}


def test_every_part_is_stored_as_it_ends(call):
    from gpu_calls import Stage

    here = call()
    sees = f'grep -q \'"name": "a"\' {here.out}/some-gpu.json && [ -s {here.out}/some-gpu.tar.gz ]'
    here.run([Stage("parts", 500, [shell("a", "true"), shell("b", sees)])], 560)
    assert statuses(here) == {"a": "done", "b": "done"}
    assert sorted(path.name for path in here.out.iterdir()) == ["some-gpu.json", "some-gpu.tar.gz"]


def test_a_later_call_does_what_was_not_done_and_what_has_changed(call, monkeypatch):
    import gpu_calls
    import in_place

    stages = [gpu_calls.Stage("s", 500, [
        shell("a", "echo x >> {work}/a.count"),
        shell("b", "echo x >> {work}/count; [ -e {work}/mended ]"),
    ])]  # fmt: skip

    def ran(name):
        return (call().work / name).read_text().count("x")

    call().run(stages, 560)
    assert statuses(call()) == {"a": "done", "b": "failed"}
    (call().work / "mended").touch()
    call().run(stages, 560)
    assert statuses(call()) == {"a": "done", "b": "done"}
    assert (ran("a.count"), ran("count")) == (1, 2)
    call().run(stages, 560)
    assert ran("count") == 2
    monkeypatch.setattr(in_place, "digest", lambda *names: "other sources")
    call().run(stages, 560)
    assert (ran("a.count"), ran("count")) == (1, 3)  # what was stored of `a` has made room


def measuring(script):
    """A benchmark that appends rows: `row CASE STATE` in `script`."""
    rows = "{work}/bench_x.jsonl"
    collected = json.dumps({"collected": ["p", "q", "r"]})
    define = (
        f'row() {{ printf \'\\n{{"case": "%s", "state": "%s", "records": ["%s"]}}\' '
        f"$1 $2 $1 >> {rows}; }}; printf '\\n%s' '{collected}' >> {rows};"
    )
    return shell("bench_x", define + script)


def test_a_benchmark_goes_on_in_another_process_after_a_fault(call):
    from gpu_calls import Stage

    script = (
        "if [ -e {work}/second ]; then row r done; exit 0; fi;"
        "touch {work}/second; row p done; row q begun; kill -KILL $$"
    )
    here = call()
    here.run([Stage("bench_x", 500, [measuring(script)])], 560)
    results = json.loads((here.out / "some-gpu.json").read_text())
    assert results["benchmarks"] == ["p", "q", "r"]
    assert statuses(here) == {"bench_x": "failed"}
    assert results["notes"] == {"q": "failed: its process ended in it"}


def test_a_benchmark_that_never_gets_further_is_given_up(call):
    from gpu_calls import Stage

    here = call()
    script = "echo x >> {work}/count; row p done; exit 1"
    here.run([Stage("bench_x", 500, [measuring(script)])], 560)
    assert (here.work / "count").read_text().count("x") == 2
    assert statuses(here) == {"bench_x": "failed"}


def test_a_benchmark_that_is_cut_keeps_what_it_has_and_goes_on_there(call):
    from gpu_calls import Stage

    here = call()
    stage = Stage("bench_x", 2, [measuring("row p done; row q begun; sleep 300")])
    here.run([stage], 560)
    assert statuses(here) == {"bench_x": "cut"}
    again = call()
    script = "grep -q '\"q\"' {work}/bench_x.jsonl && row q failed; row q done; row r done"
    again.run([Stage("bench_x", 500, [measuring(f"sed -i '$d' /dev/null; {script}")])], 560)
    results = json.loads((again.out / "some-gpu.json").read_text())
    assert sorted(results["benchmarks"]) == ["p", "q", "r"]
    assert statuses(again) == {"bench_x": "done"}


# A whole call, on a machine that only pretends

MACHINE = {"name": "Some GPU 3000", "capability": "9.0", "torch": "2.11.0", "power.limit": "5 W",
           "cpu": "Some CPU", "processors": 16, "missing": ["codecarbon"],
           "rivals": {"apex": "not installed"}}  # fmt: skip
JUNIT = (
    '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1">'
    '<testcase classname="tests.test_a" name="test_b"><failure message="off by one"/>'
    '</testcase><testcase classname="" name="tests.test_c"><error message="collection"/>'
    "</testcase></testsuite></testsuites>"
)


@pytest.fixture
def pretended(tmp_path):
    """A machine whose tools only pretend: environment for on_gpu.sh, and the folder of results."""
    tools, out = tmp_path / "bin", tmp_path / "out"
    tools.mkdir()
    info = {"op": "op", "case": "N = 3", "contender": "cpfast", "bytes": 4000, "device": "cuda"}
    record = {"extra_info": info, "stats": {"median": 1.0}}
    row = {"case": "c", "state": "done", "records": [record], "bandwidth": {"cuda": {"copy": 4.0}}}
    (tmp_path / "row").write_text(f"\n{json.dumps(row)}")
    (tmp_path / "junit").write_text(JUNIT)
    python = f"""
        echo "$*" >> {tmp_path}/calls
        case "$*" in
          *gpu_calls.py*) exec {sys.executable} "$@" ;;
          *--machine*) echo '{json.dumps(MACHINE)}'; exit ;;
        esac
        for argument; do
          case $argument in
            --rows=*) cat {tmp_path}/row >> "${{argument#*=}}" ;;
            --junitxml=*) cp {tmp_path}/junit "${{argument#*=}}" ;;
          esac
        done
        case "$*" in
          *test_layer_plan.py) echo some test failed; exit 1 ;;
          *bench_growth.py*) [ ! -e {tmp_path}/hang ] || sleep 300 ;;
        esac"""
    sanitizer = "echo '========= Invalid read, an error'; echo '========= ERROR SUMMARY: 1 error'"
    scripts = {"python": python, "nvcc": "", "compute-sanitizer": f"{sanitizer}; exit 9"}
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    return {"PATH": path, "PYTHON": str(tools / "python"), "OUT": str(out)}, out


def calls_of(pretended):
    path = pretended[1].parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_three_calls_leave_one_json_whatever_fails(pretended):
    from table import table

    environment, out = pretended
    for call in ("tests", "kernels", "training"):
        run = on_gpu(call, **environment)
        assert run.returncode == 0, run.stderr
        assert "codecarbon is missing: the energy of training runs cannot be had" in run.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "some-gpu-3000.json", "some-gpu-3000.tar.gz",
    ]  # fmt: skip
    results = json.loads((out / "some-gpu-3000.json").read_text())
    found = {part["name"]: part["status"] for part in results["parts"]}
    failed = {name for name, status in found.items() if status != "done"}
    sanitized = {n for n in found if n.startswith(("memcheck", "racecheck"))}
    assert failed == {"tests-ops-test_layer_plan"} | sanitized and len(sanitized) == 12
    assert len(results["benchmarks"]) == len(list(BENCHMARKS.glob("bench_*.py")))
    assert results["gpu"]["power.limit"] == "5 W"
    assert results["bandwidth_by_file"]["bench_growth"] == {"cuda": {"copy": 4.0}}
    assert results["sanitizer"]["racecheck"]["layers"] == {
        "summary": ["========= ERROR SUMMARY: 1 error"],
        "errors": ["========= Invalid read, an error"],
    }
    tests = sum(name.startswith(("tests-", "huge-")) for name in found)
    assert (results["tests"]["passed"], results["tests"]["failures"]) == (2 * tests, tests)
    assert results["tests"]["failed"][0] == {
        "name": "tests.test_a::test_b", "message": "off by one",
    }  # fmt: skip
    text = table(results)
    assert "Some CPU, 16 cores; Some GPU 3000; torch 2.11.0" in text
    assert text.count("| cpfast |") == len(results["benchmarks"])


def begin(call, pretended):
    """Starts a call; it returns once the benchmark that hangs is under way."""
    environment, out = pretended
    (out.parent / "hang").touch()
    run = subprocess.Popen(
        ["bash", str(BENCHMARKS / "on_gpu.sh"), call], env=environment, text=True,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    while not any("bench_growth.py" in line for line in calls_of(pretended)):
        assert run.poll() is None
        time.sleep(0.05)
    return run


def test_killed_in_the_middle_it_goes_on_from_what_was_stored(pretended):
    environment, out = pretended
    run = begin("training", pretended)
    for process in alive(run.pid, "session"):
        os.kill(process, signal.SIGKILL)
    run.wait()
    (out.parent / "hang").unlink()
    carried = out.parent / "carried"
    out.rename(carried)
    before = len(calls_of(pretended))
    again = on_gpu("training", "--resume", str(carried / "some-gpu-3000.tar.gz"), **environment)
    assert again.returncode == 0, again.stderr
    benches = [line for line in calls_of(pretended)[before:] if "bench_" in line]
    assert len(benches) == 1 and "bench_growth.py" in benches[0]
    results = json.loads((out / "some-gpu-3000.json").read_text())
    assert {part["status"] for part in results["parts"]} == {"done"}
    once_more = on_gpu("training", "--again", **environment)
    assert once_more.returncode == 0
    benches = [line for line in calls_of(pretended)[before:] if "bench_" in line]
    assert len(benches) == 5


def test_stopped_by_ctrl_c_it_keeps_what_is_done(pretended):
    _, out = pretended
    run = begin("training", pretended)
    run.send_signal(signal.SIGINT)
    rest = run.stdout.read()
    assert run.wait() == 130 and "interrupted; what is done is kept" in rest
    parts = json.loads((out / "some-gpu-3000.json").read_text())["parts"]
    assert {p["name"]: p["status"] for p in parts}["bench_training_loop"] == "done"


def test_results_of_another_gpu_are_left_alone(pretended):
    environment, out = pretended
    assert on_gpu("training", **environment).returncode == 0
    carried = out.parent / "carried.tar.gz"
    (out / "some-gpu-3000.tar.gz").rename(carried)
    python = pathlib.Path(environment["PYTHON"])
    python.write_text(python.read_text().replace("Some GPU 3000", "Other GPU"))
    run = on_gpu("training", "--resume", str(carried), **environment)
    assert f"{carried} is of Some GPU 3000, and this is Other GPU: left alone" in run.stdout
    assert "done earlier" not in run.stdout
    carried.write_bytes(carried.read_bytes()[:-20])
    run = on_gpu("training", "--resume", str(carried), **environment)
    assert run.returncode == 1
    assert run.stderr.startswith(f"on_gpu.sh: {carried}: damaged (")


def test_calls_that_knew_nothing_of_each_other_are_merged(pretended, tmp_path):
    environment, _ = pretended
    archives = []
    for call in ("kernels", "training"):
        assert on_gpu(call, **{**environment, "OUT": str(tmp_path / call)}).returncode == 0
        archives.append(str(tmp_path / call / "some-gpu-3000.tar.gz"))
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), str(tmp_path / "merged")]
    done = subprocess.run([*command, *archives], capture_output=True, text=True, check=True)
    path = tmp_path / "merged" / "some-gpu-3000.json"
    assert done.stdout == f"{path}\n"
    results = json.loads(path.read_text())
    assert len(results["benchmarks"]) == len(list(BENCHMARKS.glob("bench_*.py")))
    missing = subprocess.run([*command, "nowhere.tar.gz"], capture_output=True, text=True)
    assert missing.stderr == "gpu_report.py: nowhere.tar.gz: no such archive\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_stops_with_one_line():
    out = on_gpu("tests")
    assert out.returncode == 1
    assert out.stderr.splitlines() == [f"on_gpu.sh: torch {torch.__version__} sees no CUDA GPU"]


def test_an_interpreter_that_is_not_there_is_named():
    out = on_gpu("tests", PYTHON="/nowhere/python")
    assert out.stderr == "on_gpu.sh: /nowhere/python is not found: set PYTHON\n"


def test_an_interpreter_without_torch_is_told(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    out = on_gpu("tests", PYTHONPATH=str(tmp_path))
    assert out.stderr == "on_gpu.sh: torch is missing: install a CUDA build of torch >= 2.11\n"


def test_wrong_arguments_are_refused():
    assert on_gpu().returncode == on_gpu("all").returncode == 2


def test_results_of_nothing_are_still_results(tmp_path):
    from gpu_report import assemble

    results = assemble(tmp_path)
    assert (results["benchmarks"], results["parts"], results["tests"]) == ([], [], None)
    (tmp_path / "tests-a.xml").write_text("<testsuites><cut")
    assert assemble(tmp_path)["tests"] is None


def test_the_files_are_named_after_the_gpu():
    from gpu_report import file_name

    assert file_name("NVIDIA RTX 6000 (Ada)") == "nvidia-rtx-6000-ada"


# archive.py


def test_an_archive_is_replaced_whole_and_cut_into_volumes(tmp_path):
    import archive

    folder, path = tmp_path / "folder", tmp_path / "x.tar.gz"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "random").write_bytes(os.urandom(5000))
    (folder / "results.json").write_text("1")
    (folder / ".a.writing").write_text("half")
    assert archive.pack(folder, path) == [path]
    parts = archive.pack(folder, path, volume=2000)
    assert [p.name for p in parts] == ["x.tar.gz.0", "x.tar.gz.1", "x.tar.gz.2"]
    assert archive.volumes(path) == parts and not path.exists()
    archive.unpack(path, tmp_path / "there")
    assert (tmp_path / "there/deep/random").read_bytes() == (folder / "deep/random").read_bytes()
    assert not (tmp_path / "there/.a.writing").exists()
    archive.pack(folder, path, lambda name: name == "results.json")
    assert sorted(p.name for p in tmp_path.glob("x.*")) == ["x.tar.gz"]
    archive.unpack(path, tmp_path / "less")
    assert [p.name for p in (tmp_path / "less").iterdir()] == ["results.json"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"x.tar.gz: damaged \("):
        archive.unpack(path, tmp_path / "more")


# in_place.py


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose setup.py writes libraries that load, and counts its calls."""
    import in_place

    monkeypatch.setattr(in_place, "ROOT", tmp_path)
    monkeypatch.setattr(in_place, "STAMP", tmp_path / "build" / "in_place.json")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    for folder in ("csrc", "cpfast", "build"):
        (tmp_path / folder).mkdir()
    (tmp_path / "csrc/a.cu").write_text("// one")
    (tmp_path / "cpfast/__init__.py").touch()
    (tmp_path / "cpfast/_backend.py").write_text(
        "import pathlib\nNATIVE = 1\n"
        "CUDA_LOADED = not pathlib.Path(__file__).with_name('broken').exists()"
    )
    libraries = [str(path) for path in in_place.libraries(True)]
    (tmp_path / "setup.py").write_text(
        f"import os, pathlib, sys\nopen('count', 'a').write(os.environ['CPFAST_CUDA'])\n"
        f"[pathlib.Path(p).touch() for p in {libraries}]\n"
        "sys.exit(pathlib.Path('fails').exists())"
    )
    return tmp_path


def test_a_checkout_is_built_where_its_sources_have_changed(checkout):
    import in_place

    def built():
        in_place.build(cuda=True)
        return len((checkout / "count").read_text())

    assert built() == built() == 1
    source = checkout / "csrc/a.cu"
    source.touch()
    assert built() == 1
    old = source.stat().st_mtime - 10**6
    source.write_text("// two")
    os.utime(source, (old, old))
    assert built() == 2
    in_place.libraries(True)[1].unlink()
    assert built() == 3
    in_place.build(cuda=False)  # which a build for CUDA serves too
    assert (checkout / "count").read_text() == "111"
    source.write_text("// three")
    in_place.build(cuda=False)
    assert (checkout / "count").read_text() == "1110"
    assert built() == 5


def test_a_build_that_fails_or_does_not_load_is_no_build(checkout):
    import in_place

    (checkout / "fails").touch()
    with pytest.raises(SystemExit, match=r"the build failed \(exit 1\)"):
        in_place.build(cuda=True)
    (checkout / "fails").unlink()
    (checkout / "cpfast/broken").touch()
    with pytest.raises(SystemExit, match="the libraries cannot be loaded"):
        in_place.build(cuda=True)
    assert not in_place.STAMP.exists()
