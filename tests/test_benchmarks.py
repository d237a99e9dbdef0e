"""The benchmarks' own arithmetic: clocks, sizes, what is left out, tables and the GPU's JSON."""

import itertools
import json
import pathlib
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def siblings(monkeypatch):
    """Benchmarks import each other as siblings, as pytest lets them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def record(contender, median, **info):
    info = {"op": "op", "case": "N = 3", "contender": contender, "bytes": 4000, **info}
    return {"extra_info": info, "stats": {"median": median}}


# harness.py


def test_inputs_rotate_where_they_would_stay_in_no_cache(monkeypatch):
    import harness

    monkeypatch.setattr(harness, "cache_bytes", lambda device: 1000)
    assert harness.input_sets(lambda seed: (seed,), 499, "cpu") == [(0,)]
    assert harness.input_sets(lambda seed: (seed,), 500, "cpu") == [(s,) for s in range(8)]
    assert len(harness.input_sets(lambda seed: (seed,), 1700, "cpu")) == 3
    assert len(harness.input_sets(lambda seed: (seed,), 10**9, "cpu")) == 1


def test_what_does_not_fit_is_told_with_both_sizes(monkeypatch):
    import harness

    monkeypatch.setattr(harness, "free_bytes", lambda device: 10**9)
    assert harness.too_big(9 * 10**8, "cpu") == ""
    assert harness.too_big(2 * 10**9, "cpu") == "needs 2 GB on cpu, 1 GB are free"


def test_free_memory_is_that_of_this_machine():
    import harness

    assert 1 << 20 < harness.free_bytes("cpu") < 1 << 50


def test_bandwidth_counts_a_copy_twice(monkeypatch):
    import harness

    monkeypatch.setattr(harness.Contender, "block", lambda self: 0.5)
    assert harness.measured_bandwidth("cpu", 4 << 20) == {
        "copy": 2 * (4 << 20) / 0.5 / 1e9,
        "sum": (4 << 20) / 0.5 / 1e9,
    }


def test_peak_memory_is_of_temporaries_and_outputs():
    import harness

    x = torch.randn(1 << 16)
    quarter = 1 << 18
    # The number 1 is a tensor of a few bytes too.
    assert harness.cpu_peak_bytes(lambda: x + 1) == pytest.approx(quarter, abs=100)
    assert harness.cpu_peak_bytes(lambda: (x + 1) * 2) == pytest.approx(2 * quarter, abs=100)
    assert harness.cpu_peak_bytes(lambda: x.add_(1)) < 100


def test_peak_memory_counts_numpy():
    import harness

    values = torch.randn(1 << 20).numpy()
    assert 4 << 20 <= harness.cpu_peak_bytes(lambda: values + 1) < 5 << 20


def test_calls_take_the_next_inputs_wherever_the_last_block_ended():
    import harness

    seen, turns = [], itertools.cycle([(0,), (1,), (2,)])
    first = harness.Contender(seen.append, [(0,)], "cpu", turns)
    second = harness.Contender(seen.append, [(0,)], "cpu", turns)
    first.block(), second.block(), first.block(), second.block()
    assert seen == [0, 1, 2, 0]


def test_what_writes_over_its_input_gets_it_whole_each_block():
    import harness

    x, seen = torch.ones(1000), []

    def double(t):
        seen.append(t[:3].clone())
        t.mul_(2)

    runner = harness.Contender(double, [(x,)], "cpu", overwrites=True)
    runner.calls = 2
    runner.block(), runner.block(), runner.once()
    assert torch.stack(seen).eq(1).all()
    assert len(seen) == 5
    assert runner.peak_bytes() < 100
    assert x.eq(1).all()


def race(contenders, **options):
    import harness

    options = {"budget": 0.0, **options}
    return harness.Race(contenders, [(torch.ones(8),)], "cpu", **options)


def test_rivals_that_cannot_run_are_named_with_their_reasons(monkeypatch):
    import harness

    monkeypatch.setattr(harness, "free_bytes", lambda device: 10**9)

    def broken(x):
        raise RuntimeError("first line\nsecond")

    field = race(
        {
            "cpfast": lambda x: x + 1,
            "same": lambda x: (x + 1).numpy(),
            "missing": "not installed (apex)",
            "broken": broken,
            "other": lambda x: x + 2,
            "large": lambda x: x + 1,
        },
        agree=harness.close(0, 1e-6),
        temporaries={"large": 2 * 10**9},
    )
    assert list(field.running) == ["cpfast", "same", "other"]
    assert field.left_out["missing"] == "not installed (apex)"
    assert field.left_out["broken"] == "RuntimeError: first line second"
    assert field.left_out["large"] == "needs 2 GB on cpu, 1 GB are free"
    assert set(field.left_out) == {"missing", "broken", "large"}
    assert list(field.differs) == ["other"]
    assert field.differs["other"].startswith("AssertionError: Tensor-likes are not close!")


def test_an_error_of_ours_is_an_error():
    def broken(x):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        race({"cpfast": lambda x: x, "cpfast, another way": broken})


def test_a_rival_that_takes_too_long_is_left_out(monkeypatch):
    import harness

    monkeypatch.setitem(harness.PATIENCE, "cpu", 0.0)
    field = race({"cpfast": lambda x: x, "slow": lambda x: x})
    assert list(field.running) == ["cpfast"]
    assert field.left_out["slow"].startswith("one call took ")


def test_ratios_are_of_neighbours_in_time():
    field = race({"cpfast": lambda x: x, "rival": lambda x: x})
    # The machine halves its speed in between: the medians' ratio would be 1.
    field.times = {"cpfast": [1.0, 2.0, 2.0], "rival": [2.0, 2.0, 4.0]}
    results = field.results()
    assert results["rival"]["ratio"][1] == 2.0
    assert results["rival"]["stats"]["median"] == results["cpfast"]["stats"]["median"] == 2.0


def test_every_round_times_every_contender_once_until_time_is_up():
    field = race({"cpfast": lambda x: x + 1, "rival": lambda x: x + 1})
    assert field.rounds == field.least == 5
    for _ in range(field.rounds + 3):
        field.round()
    assert [len(times) for times in field.times.values()] == [field.rounds] * 2
    assert min(min(times) for times in field.times.values()) > 0


# workloads.py


@pytest.mark.parametrize(
    ("model", "millions", "layers"),
    [
        ("ResNet-56", 0.85, 58),
        ("ResNet-50", 25.5, 54),
        ("268 M", 268.4, 16),
        ("Llama 1.2 B", 1235.7, 113),
        ("Llama 6.7 B", 6738.1, 226),
    ],
)
def test_models_have_their_published_sizes(model, millions, layers):
    from workloads import MODELS, numel

    assert numel(MODELS[model]) / 1e6 == pytest.approx(millions, rel=2e-3)
    assert len(MODELS[model]) == layers


def test_a_tensor_of_any_size_is_filled_from_the_pool_and_around():
    from workloads import fill

    pool, target = torch.arange(5.0), torch.full((3, 4), -1.0)
    fill(target, pool, 8)
    assert target.flatten().tolist() == [(3 + i) % 5 for i in range(12)]


def test_weights_are_near_their_references_and_no_layer_is_anothers():
    import workloads

    pair = (torch.float32, torch.float32)
    params, refs = workloads.weights([(50, 40), (2000,)], "cpu", pair)
    for w, w0 in zip(params, refs, strict=True):
        assert 0.005 < (w - w0).std() < 0.02
    assert not torch.equal(refs[0].flatten(), refs[1])


# Floors and rivals


def test_every_form_of_rotation_agrees_with_the_twin():
    import bench_layer_statistics as bench
    from workloads import weights

    from cpfast import reference

    params, refs = weights([(6, 50), (20, 5), (6, 50)], "cpu", (torch.float32, torch.float32))
    params = [p + 0.5 * p.flip(0) for p in params]
    norms = torch.stack([r.norm() for r in refs])
    expected = reference.layer_rotation(params, refs)
    forms = [
        bench.cosine_similarity,
        bench.dots_and_norms,
        bench.two_dots,
        bench.dots_foreach_norm,
        bench.foreach_products,
        bench.from_differences(lambda t: torch.stack(torch._foreach_norm(t))),
        bench.segments,
        bench.stacked_by_shape,
    ]
    if hasattr(torch, "_foreach_mm"):
        forms.append(bench.foreach_mm)
    if find_spec("scipy"):
        forms.append(bench.scipy_rotation)
    for form in forms:
        found = torch.as_tensor(form(params, refs, norms)).float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for found, twin in zip(
        bench.foreach_statistics(params, refs, norms),
        reference.layer_statistics(params, refs),
        strict=True,
    ):
        torch.testing.assert_close(found, twin, rtol=1e-4, atol=1e-5)


def test_every_form_of_the_loss_has_its_gradient_and_records_its_score():
    import bench_scored_cross_entropy as bench
    from workloads import logits

    from cpfast import reference

    x, y = logits((6, 9), "cpu", torch.float32)
    index = torch.tensor([5, 3, 0, 1, 7, 2])
    scored = reference.scored_cross_entropy(x, y)
    (expected,) = torch.autograd.grad(scored.loss.mean(), x)
    for loss, score in (
        (bench.plain, None),
        (bench.losses_recorded, scored.loss),
        (bench.el2n_recorded, scored.el2n),
        (bench.twin, scored.loss),
    ):
        table = torch.zeros(8)
        gradient = bench.forward_and_backward(loss)(x, y, table, index)
        torch.testing.assert_close(gradient, expected)
        if score is not None:
            torch.testing.assert_close(table[index], score.detach())


def test_rivals_select_as_many_as_the_twin():
    import bench_select_samples as bench

    from cpfast import reference

    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    twin = reference.select_samples(scores, keep=bench.KEEP, seed=0, epoch=1)
    for select in (bench.torch_selection, bench.numpy_selection, bench.infobatch_selection):
        indices, weights = select(scores)
        assert len(set(map(int, indices))) == len(indices) == int(twin.count)
        below = [i for i in map(int, indices) if scores[i] < scores.mean()]
        assert all(weights[below] == 2)


def test_rivals_that_are_not_here_say_so():
    import rivals

    assert rivals.optional("no_such_module:f", "cuda", lambda f: f) == (
        "not installed (no_such_module)"
    )
    assert rivals.optional("torch:cat", "cpu", lambda f: f) == "needs a GPU"
    assert rivals.optional("torch:cat", "cuda", lambda f: f) is torch.cat
    assert "cannot be imported" in rivals.optional("torch:no_such_name", "cuda", lambda f: f)
    assert set(rivals.installed()) >= {"apex", "liger-kernel", "quack-kernels", "flash-attn"}


# table.py and plot.py


def test_a_table_of_older_results_takes_the_medians_ratio():
    from table import table

    old = {
        "machine_info": {"cpu": {"brand_raw": "Some CPU", "count": 2}},
        "benchmarks": [record("cpfast", 1e-6), record("twin", 3e-3, bytes=None)],
    }
    lines = table(old).splitlines()
    assert lines[0].startswith("Some CPU, 2 cores. ")
    assert "| op | N = 3 | cpfast | 1 us | 4 kB | 4 |  |  |  | 1.00 |" in lines
    assert "| op | N = 3 | twin | 3 ms |  |  |  |  |  | 3000.00 |" in lines


def test_a_table_of_newer_results_shows_devices_and_what_was_not_run():
    from table import table

    graphed = {"device": "cuda", "clock": "graph", "host": 6e-6, "peak": 2.5e6, "fraction": 0.95}
    new = {
        "machine_info": {"cpu": {}, "gpu": "Some GPU", "torch": "2.13.0"},
        "bandwidth": {"cuda": {"copy": 4300.0}},
        "notes": {"op, N = 3, cuda": {"Apex": "not installed (apex)"}, "bench_x": "cut"},
        "benchmarks": [
            record("cpfast", 5e-6, ratio=[0.9, 1.0, 1.1], **graphed),
            record("rival", 1e-5, ratio=[2.9, 3.0, 3.1], **graphed),
        ],
    }
    text = table(new)
    assert "CPU, ? cores; Some GPU; torch 2.13.0. " in text
    assert "**cuda**: copy 4.3e+03 GB/s" in text
    assert "| cpfast | 5 us g | 4 kB | 0.8 | 0.95 | 6 us | 2.5 MB | 1.00 |" in text
    assert "| rival | 10 us g | 4 kB | 0.4 | 0.95 | 6 us | 2.5 MB | 3.00 |" in text
    assert "- op, N = 3, cuda: Apex: not installed (apex)\n- bench_x: cut" in text


def test_training_steps_have_lines_of_their_own():
    from table import table

    intervals = {"step_ratio": [0.998, 1.0005, 1.002], "noise_ratio": [0.999, 1.0, 1.001]}
    text = table({"benchmarks": [record("cpfast", 1.0, device="cpu", **intervals)]})
    assert (
        "- N = 3, cpu: 1.0005 [0.9980, 1.0020] of the plain step "
        "(the plain step of itself: 1.0000 [0.9990, 1.0010])" in text
    )


def test_committed_results_can_be_printed():
    for path in sorted((BENCHMARKS / "results").glob("cpu-*.json")):
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.table", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.count("\n| ") > 20


def test_growth_is_drawn_against_the_bandwidth(tmp_path):
    pytest.importorskip("matplotlib")
    from plot import curves, plot

    grown = {"op": "growth of op", "device": "cpu", "axis": "samples"}
    results = {
        "bandwidth": {"cpu": {"copy": 10.0, "sum": 20.0}},
        "benchmarks": [
            record("other", 1.0),
            record("cpfast", 1e-3, at=10, **grown),
            record("cpfast", 1e-2, at=100, **grown),
        ],
    }
    (panel,) = curves(results).values()
    assert panel["cpfast"] == [(10, 1e-3), (100, 1e-2)]
    assert panel["bandwidth"] == [(10, 4000 / 20e9), (100, 4000 / 20e9)]
    plot(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000


# gpu_report.py and on_gpu.sh


@pytest.fixture
def work(tmp_path):
    """What on_gpu.sh leaves where one part was cut and one failed."""
    rows = [
        "build\tdone\t0\t61\t150",
        "tests\tfailed\t1\t20\t100",
        "racecheck\tcut\t124\t60\t60",
        "bench_growth\tcut\t\t0\t4",
    ]
    (tmp_path / "parts.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "tests.log").write_text("".join(f"line {i}\n" for i in range(30)))
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1">'
        '<testcase classname="tests.test_a" name="test_b"><failure message="off by one"/>'
        '</testcase><testcase classname="" name="tests.test_c"><error message="collection"/>'
        "</testcase></testsuite></testsuites>"
    )
    (tmp_path / "memcheck.log").write_text(
        "same: layers\n========= Invalid __global__ read of size 4 bytes, an error\n"
        "========= ERROR SUMMARY: 1 error\n"
    )
    for number, op in enumerate(("a", "b")):
        results = {
            "machine_info": {"torch": "2.13.0"},
            "bandwidth": {"cuda": {"copy": 4000.0 + number}},
            "notes": {op: "reason"},
            "benchmarks": [record("cpfast", 1.0, op=op)],
        }
        (tmp_path / f"bench_{op}.json").write_text(json.dumps(results))
    (tmp_path / "bench_cut.json").write_text('{"benchmarks": [')
    return tmp_path


def test_one_json_has_all_parts_and_names_those_that_were_cut(work):
    from gpu_report import assemble
    from table import table

    results = assemble(work, {"name": "Some GPU"})
    assert [(p["name"], p["status"], p["exit"]) for p in results["parts"]] == [
        ("build", "done", 0),
        ("tests", "failed", 1),
        ("racecheck", "cut", 124),
        ("bench_growth", "cut", None),
    ]
    assert results["parts"][1]["log"] == [f"line {i}" for i in range(10, 30)]
    assert [r["extra_info"]["op"] for r in results["benchmarks"]] == ["a", "b"]
    assert results["notes"] == {"a": "reason", "b": "reason"}
    assert results["bandwidth_by_file"]["bench_a"] == {"cuda": {"copy": 4000.0}}
    assert results["sanitizer"]["memcheck"] == {
        "summary": ["========= ERROR SUMMARY: 1 error"],
        "errors": ["========= Invalid __global__ read of size 4 bytes, an error"],
    }
    assert results["sanitizer"]["racecheck"] is None
    assert table(json.loads(json.dumps(results))).count("| cpfast |") == 2


def test_the_tests_are_counted_and_what_failed_is_named(work):
    from gpu_report import tests

    found = tests(work)
    assert (found["passed"], found["failures"], found["errors"], found["skipped"]) == (2, 1, 1, 1)
    assert found["failed"][0] == {"name": "tests.test_a::test_b", "message": "off by one"}
    (work / "tests.xml").write_text("<testsuites><cut")
    assert tests(work) is None


def test_results_of_nothing_are_still_results(tmp_path):
    from gpu_report import assemble

    results = assemble(tmp_path, {"name": "Some GPU"})
    assert (results["benchmarks"], results["parts"], results["tests"]) == ([], [], None)


def test_the_file_is_named_after_the_gpu():
    from gpu_report import file_name

    assert file_name("NVIDIA RTX 6000 (Ada)") == "nvidia-rtx-6000-ada.json"


def on_gpu(*arguments, **environment):
    return subprocess.run(
        ["bash", str(BENCHMARKS / "on_gpu.sh"), *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_plan_is_within_the_time_and_names_every_part():
    out = on_gpu("--dry-run")
    assert out.returncode == 0, out.stderr
    names = [line.split()[0] for line in out.stdout.splitlines()]
    benches = {path.stem for path in BENCHMARKS.glob("bench_*.py")}
    assert set(names) == benches | {"build", "ops", "tests", "memcheck", "racecheck"}
    assert names[:3] == ["build", "ops", "tests"]


@pytest.fixture
def pretended(tmp_path):
    """A machine whose tools only pretend: environment for on_gpu.sh, and the folder of results."""
    tools, out = tmp_path / "bin", tmp_path / "out"
    tools.mkdir()
    (tmp_path / "bench.json").write_text(json.dumps({"benchmarks": [record("cpfast", 1.0)]}))
    python = f"""
        case "$*" in
          *gpu_report.py*) exec {sys.executable} "$@" ;;
          *get_device_capability*) echo 9.0 ;;
          *"-m cuda"*) echo some test failed; exit 1 ;;
        esac
        for argument; do
          case $argument in
            --benchmark-json=*) cp {tmp_path}/bench.json "${{argument#*=}}" ;;
          esac
        done"""
    smi = "echo Some GPU 3000, 580.1, 1 MiB, 1 MHz, 2 MHz, 3 MHz, 4 W, 5 W, 30, Enabled"
    sanitizer = "echo '========= ERROR SUMMARY: 0 errors'"
    scripts = {"python": python, "nvcc": "", "nvidia-smi": smi, "compute-sanitizer": sanitizer}
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    return {"PATH": path, "PYTHON": str(tools / "python"), "OUT": str(out)}, out


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to be another GPU")
def test_one_command_leaves_one_json_whatever_fails(pretended):
    environment, out = pretended
    run = on_gpu(**environment)
    assert run.returncode == 0, run.stderr
    assert "tests" in run.stdout and "some test failed" in run.stdout
    (path,) = out.iterdir()
    assert path.name == "some-gpu-3000.json"
    results = json.loads(path.read_text())
    statuses = {part["name"]: part["status"] for part in results["parts"]}
    assert statuses.pop("tests") == "failed"
    assert set(statuses.values()) == {"done"}
    assert len(results["benchmarks"]) == sum(name.startswith("bench_") for name in statuses)
    assert results["gpu"]["power.limit"] == "5 W"
    assert results["sanitizer"]["racecheck"]["summary"] == ["========= ERROR SUMMARY: 0 errors"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to be another GPU")
def test_what_there_is_no_time_for_is_named(pretended):
    environment, out = pretended
    run = on_gpu(**environment, TOTAL="5")
    # Without a build it is a failure, with a JSON all the same.
    assert run.returncode == 1
    results = json.loads((out / "some-gpu-3000.json").read_text())
    assert {part["status"] for part in results["parts"]} == {"cut"}
    assert results["benchmarks"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_stops_with_one_line():
    out = on_gpu()
    assert out.returncode == 1
    assert out.stderr.splitlines() == [f"on_gpu.sh: torch {torch.__version__} sees no CUDA GPU"]


def test_an_interpreter_that_is_not_there_is_named():
    out = on_gpu(PYTHON="/nowhere/python")
    assert out.stderr == "on_gpu.sh: /nowhere/python is not found: set PYTHON\n"


def test_wrong_arguments_are_refused():
    assert on_gpu("--help").returncode == 2


def test_the_small_set_for_the_sanitizers_calls_every_op_rightly(monkeypatch):
    import on_gpu_ops

    monkeypatch.setattr(on_gpu_ops, "gpu", lambda value: [on_gpu_ops._copied(v) for v in value])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    on_gpu_ops.main()
    assert on_gpu_ops.FAILED == []
