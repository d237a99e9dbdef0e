import os
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]


def setup(**environment):
    pytest.importorskip("pybind11")
    pytest.importorskip("setuptools")
    return subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_cuda_that_is_demanded_and_missing_stops_the_build():
    out = setup(CPFAST_CUDA="1")
    assert out.returncode != 0
    assert "CPFAST_CUDA=1, but torch" in out.stderr
    assert "has no CUDA (install a CUDA build of torch" in out.stderr


def test_cuda_can_be_left_out():
    assert setup(CPFAST_CUDA="0").stdout.split()[-1] == "cpfast"


def test_a_wrong_setting_is_named():
    assert "CPFAST_CUDA: expected 0, 1 or nothing, got 'yes'" in setup(CPFAST_CUDA="yes").stderr


def test_the_source_distribution_has_every_source(tmp_path):
    pytest.importorskip("pybind11")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    listed = (tmp_path / "cpfast.egg-info" / "SOURCES.txt").read_text().split()
    sources = [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*")]
    assert sources
    assert set(sources) <= set(listed)
