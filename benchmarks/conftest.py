import pytest


@pytest.fixture
def race(benchmark):
    """Times one contender of one case; `python -m benchmarks.table` sets them side by side."""

    def run(op, case, contender, function, bytes_moved=None):
        benchmark.group = f"{op} {case}"
        benchmark.extra_info.update(op=op, case=case, contender=contender, bytes=bytes_moved)
        # Calibration, inside, repeats short calls until the clock's resolution does not matter.
        return benchmark(function)

    return run


def pytest_benchmark_update_json(output_json):
    # Results are committed: without every single timing, and without the machine's own name.
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
    output_json["machine_info"].pop("node", None)
    output_json["machine_info"]["cpu"].pop("flags", None)
