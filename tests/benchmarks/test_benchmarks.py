"""The benchmarks' own arithmetic: clocks, sizes, what is left out, tables, rows of cases."""

import itertools
import os
import pathlib
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
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


# rows.py and conftest.py


def test_rows_survive_a_line_that_was_cut_short(tmp_path):
    import rows

    path = tmp_path / "rows"
    rows.append(path, {"collected": ["a", "b", "c", "d"]})
    rows.append(path, {"case": "a", "state": "begun"})
    rows.append(path, {"case": "a", "state": "done", "records": [1], "bandwidth": {"cuda": {}}})
    with path.open("a") as file:
        file.write('\n{"case": "b", "sta')
    rows.append(path, {"case": "c", "state": "failed", "why": "no", "notes": {"x": "y"}})
    rows.append(path, {"case": "d", "state": "cut"})
    assert {case: row["state"] for case, row in rows.read(path).items()} == {
        "a": "done", "c": "failed", "d": "cut",
    }  # fmt: skip
    assert rows.left(path) == ["b", "d"]
    assert rows.merge(rows.read(path).values()) == {
        "benchmarks": [1], "notes": {"x": "y", "c": "failed: no"}, "bandwidth": {"cuda": {}},
    }  # fmt: skip
    rows.settle(path)
    assert list(rows.read(path)) == ["a"] and rows.left(path) == []


FAULTY = """
    import os
    import pytest

    @pytest.mark.parametrize("case", range(6))
    def bench_op(race, device, case):
        if case == 1:
            raise RuntimeError("no\\nsecond line")
        if case == 2:
            os._exit(7)
        if case == 4:
            pytest.skip("too big")
        race("op", f"N = {case}", {"cpfast": lambda x: x, "rival": lambda x: x}, [(0,)], 8)
"""


def bench(folder, *options):
    """Runs bench_faulty.py in a folder, with the fixtures of the benchmarks."""
    (folder / "bench_faulty.py").write_text(textwrap.dedent(FAULTY))
    (folder / "conftest.py").write_text((BENCHMARKS / "conftest.py").read_text())
    (folder / "pytest.ini").write_text(
        "[pytest]\npython_files = bench_*.py\npython_functions = bench_*\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_what_a_fault_leaves_is_measured_by_the_next_process(tmp_path):
    import rows

    path = tmp_path / "rows"
    options = (f"--rows={path}", "--rehearse", "-k", "cuda", "-p", "no:benchmark")
    first = bench(tmp_path, *options)
    assert first.returncode == 7, first.stdout
    states = [row["state"] for row in rows.read(path).values()]
    assert states == ["done", "failed", "begun"]
    assert len(rows.left(path)) == 3
    second = bench(tmp_path, *options)
    assert second.returncode == 0, second.stdout
    found = rows.read(path)
    states = [row["state"] for row in found.values()]
    assert states == ["done", "failed", "begun", "done", "skipped", "done"]
    merged = rows.merge(found.values())
    assert [r["extra_info"]["case"] for r in merged["benchmarks"]] == ["N = 0", "N = 3", "N = 5"]
    assert [note.partition(": ")[2] or note for note in merged["notes"].values()] == [
        "RuntimeError: no second line", "its process ended in it", "too big",
    ]  # fmt: skip
    assert bench(tmp_path, *options).returncode == 5  # nothing is left to do


@pytest.mark.slow
def test_what_time_does_not_allow_is_cut_and_left_for_later(tmp_path):
    import rows

    path = tmp_path / "rows"
    done = bench(tmp_path, f"--rows={path}", "--rehearse", "--seconds=0")
    assert done.returncode == 0, done.stdout
    assert [row["state"] for row in rows.read(path).values()] == ["cut"] * 6
    assert len(rows.left(path)) == 6


# on_gpu_ops.py


def test_the_small_set_for_the_sanitizers_calls_every_op_rightly(monkeypatch):
    import on_gpu_ops

    monkeypatch.setattr(on_gpu_ops, "DEVICE", "cpu")
    on_gpu_ops.main([])
    assert on_gpu_ops.FAILED == []


def test_an_op_that_differs_from_the_cpu_is_named(monkeypatch):
    import on_gpu_ops

    monkeypatch.setattr(on_gpu_ops, "DEVICE", "cpu")
    monkeypatch.setattr(on_gpu_ops, "FAILED", [])
    monkeypatch.setattr(on_gpu_ops, "record", lambda *_: (torch.rand(3),))
    with pytest.raises(SystemExit, match="1 differ from the CPU: record"):
        on_gpu_ops.main(["record"])
