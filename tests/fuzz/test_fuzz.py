"""Random calls of every op on guarded memory, against float64: no wrong digit, no byte beside."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from cuda_emulation.harness import emulated_only

import cpfast
from cpfast import ops

from .calls import CALLS

TESTS = pathlib.Path(__file__).resolve().parent.parent
CALLS_EACH = 800  # 80 s of one core, a third of them the cross-entropies'

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
right = ops.{name}
{fault}
ops.{name} = op
from fuzz.__main__ import main
sys.exit(main("{name}", 0, {calls}, sys.argv[1]))
"""


def run_planted(at, name, fault, calls):
    return run(["-c", PLANTED.format(name=name, fault=fault, calls=calls)], at)


def test_a_planted_fault_is_found_and_named(tmp_path):
    at = tmp_path / "call"
    status, printed = run_planted(at, "record_scores", READS_A_BYTE_TOO_MUCH, 40)
    assert status == -11, printed
    assert at.read_text().startswith("PYTHONPATH=tests python -m fuzz record_scores ")
    status, printed = run_planted(at, "record_scores", WRITES_BESIDE, 40)
    assert status > 0 and "bytes changed" in printed, printed
    assert "PYTHONPATH=tests python -m fuzz record_scores " in printed


WRONG_LOSSES = {
    "a thousandth less smoothing": """
def op(*args, label_smoothing=0.0, **options):
    return right(*args, label_smoothing=0.999 * label_smoothing, **options)
""",
    "no gradient of z_loss": """
def op(*args, gradient=None, **options):
    out = right(*args, **options)
    left_out = ("z_loss", "table", "index", "score")
    options = {key: value for key, value in options.items() if key not in left_out}
    loss = right(*args, **options).loss
    return out._replace(loss=loss + (out.loss - loss).detach())
""",
    "a mean over rows, though classes have weights": """
def op(*args, class_weight=None, reduction="none", **options):
    out = right(*args, class_weight=class_weight, reduction=reduction, **options)
    target = args[-1]
    if class_weight is None or reduction != "mean" or target.is_floating_point():
        return out
    kept = target.long() != options["ignore_index"]
    counted = class_weight.double()[target.long()[kept]].sum()
    return out._replace(loss=out.loss * (counted / kept.sum()).to(out.loss.dtype))
""",
}


@pytest.mark.parametrize("fault", WRONG_LOSSES)
@pytest.mark.parametrize("name", ["scored_cross_entropy", "scored_linear_cross_entropy"])
def test_a_slightly_wrong_loss_is_found(tmp_path, name, fault):
    status, printed = run_planted(tmp_path / "call", name, WRONG_LOSSES[fault], 60)
    assert status > 0 and f"fuzz {name} " in printed, printed
    assert re.search("# Wrong: (loss|gradient)", printed), printed


def test_every_op_is_called():
    of_sums = {"ratio_of_sums", "rotation_of_sums", "statistics_of_sums"}  # by layer_sums
    assert {*CALLS, *of_sums} == {name for name in ops.__all__ if name.islower()}
