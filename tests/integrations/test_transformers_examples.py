"""The examples for transformers run, and differ by five lines from those without cpfast."""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.needs("transformers"), pytest.mark.needs("accelerate"), pytest.mark.slow]


@pytest.mark.parametrize("name", ["causal_lm", "classification"])
def test_five_lines_of_code_are_all_that_changes(name):
    plain = (EXAMPLES / "plain" / f"transformers_{name}.py").read_text().splitlines()
    pruned = (EXAMPLES / f"transformers_{name}.py").read_text().splitlines()
    changes = list(difflib.ndiff(plain, pruned))
    added, removed = ([c[2:] for c in changes if c[0] == sign and c[2:].strip()] for sign in "+-")
    assert 0 < len(added) <= 5 and len(removed) == 1
    assert all("import" in line or "cpfast" in line or "Pruned" in line for line in added)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("causal_lm", lambda printed: float(printed.split()[0]) < 4.2),  # 4.5 for bytes by chance
        pytest.param("classification", lambda printed: float(printed.split("%")[0]) > 75,
                     marks=pytest.mark.needs("sklearn")),
    ],
)  # fmt: skip
def test_an_example_learns_and_leaves_samples_out(name, better):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"transformers_{name}.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert better(done.stdout.strip().splitlines()[-1])
    kept = [float(share) for share in re.findall(r"'cpfast/kept': '([\d.]+)'", done.stdout)]
    assert len(kept) in (8, 20) and min(kept) < 0.8 and kept[-1] == 1
