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
