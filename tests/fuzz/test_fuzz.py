"""Random calls of every op on guarded memory, against float64: no wrong digit, no byte beside."""

import os
import pathlib
import subprocess
import sys

import pytest
from cuda_emulation.harness import emulated_only

import cpfast
from cpfast import ops

from .calls import CALLS

TESTS = pathlib.Path(__file__).resolve().parent.parent
CALLS_EACH = 800  # 60 s on one idle core, a quarter of them scored_cross_entropy's

pytestmark = [
    *emulated_only[:2],
    pytest.mark.slow,
]  # compiled kernels, and memory that Linux guards


FEW_CALLS = 100  # of the instruction sets that this machine does not prefer
EMULATED_CALLS = 25
ISAS = cpfast.build_info().get("cpu_kernels_here", "").split()


def run(code, *arguments, **environment):
    """The exit status of a process of its own, and what it printed."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, *code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stdout + process.stderr


def calls_are_right(tmp_path, count, **environment):
    at = tmp_path / "call"
    status, printed = run(["-m", "fuzz"], ",".join(CALLS), 0, count, at, **environment)
    assert status >= 0, f"killed by signal {-status} in: {at.read_text().strip()}\n{printed}"
    assert status == 0, f"wrong calls, and what repeats them:\n{printed}"


@pytest.mark.parametrize("isa", ISAS)
def test_random_calls(request, tmp_path, isa):
    count = request.config.getoption("--calls", None) or CALLS_EACH
    calls_are_right(tmp_path, count if isa == ISAS[-1] else min(count, FEW_CALLS), CPFAST_ISA=isa)


@pytest.mark.emulated
def test_random_calls_of_the_cuda_kernels(request, tmp_path, emulated):
    count = request.config.getoption("--calls", None) or EMULATED_CALLS
    calls_are_right(tmp_path, count, EMULATED=emulated.library._name)


def test_random_calls_of_the_twins(tmp_path):
    """But for layers and losses, which they compute to other digits."""
    at, names = tmp_path / "call", "select_samples,shuffled_slice,record_scores,augment_batch"
    status, printed = run(["-m", "fuzz"], names, 0, 100, at, CPFAST_BACKEND="reference")
    assert status == 0, f"wrong calls, and what repeats them:\n{printed}"


# What a fault would do, in place of an op.
READS_A_BYTE_TOO_MUCH = """
def op(scores, index, values):
    right(scores, index, values)
    ctypes.string_at(index.data_ptr() + index.numel() * index.element_size(), 1)
"""
WRITES_BESIDE = """
def op(scores, index, values):
    right(scores, index, values)
    index.add_(1)
"""
PLANTED = """
import ctypes, sys
import cpfast
from cpfast import ops
right = ops.record_scores
{}
ops.record_scores = op
from fuzz.__main__ import main
sys.exit(main("record_scores", 0, 40, sys.argv[1]))
"""


def test_a_planted_fault_is_found_and_named(tmp_path):
    at = tmp_path / "call"
    status, printed = run(["-c", PLANTED.format(READS_A_BYTE_TOO_MUCH)], at)
    assert status == -11, printed
    assert at.read_text().startswith("PYTHONPATH=tests python -m fuzz record_scores ")
    status, printed = run(["-c", PLANTED.format(WRITES_BESIDE)], at)
    assert status > 0 and "bytes changed" in printed, printed
    assert "PYTHONPATH=tests python -m fuzz record_scores " in printed


def test_every_op_is_called():
    of_sums = {"ratio_of_sums", "rotation_of_sums", "statistics_of_sums"}  # by layer_sums
    of_products = {"scored_linear_cross_entropy"}  # torch's, and scored_cross_entropy between them
    assert {*CALLS, *of_sums, *of_products} == {name for name in ops.__all__ if name.islower()}
