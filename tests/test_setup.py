import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch
from support.compilers import COMPILER, executable

import cpfast

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]


def setup(**environment):
    pytest.importorskip("pybind11")
    pytest.importorskip("setuptools")
    return subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"],
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
    assert setup(CPFAST_CUDA="0").stdout.split()[-2:] == ["cpfast", cpfast.__version__]


@pytest.mark.parametrize("name", ["CPFAST_CUDA", "CPFAST_SANITIZE"])
def test_a_wrong_setting_is_named(name):
    assert f"{name}: expected 0, 1 or nothing, got 'yes'" in setup(**{name: "yes"}).stderr


# --- builds with a toolkit and a compiler that only look like it ------------------------------

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
CPU, CUDA = f"_C{SUFFIX}", f"_cuda{SUFFIX}"
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit ;;
  --dryrun) echo "#\\$ TOP=$(dirname "$0")/.." >&2; exit ;;
esac
"""
# As a torch built with CUDA 13 says of itself.
SETUP = """
import runpy, sys, torch
torch.version.cuda = "13.0"
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy to build in, with a toolkit, and a script in PATH that runs its nvcc."""
    for module in ("pybind11", "setuptools"):
        pytest.importorskip(module)
    if shutil.which("c++") is None:
        pytest.skip("no c++ here")
    copy = tmp_path / "checkout"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "cpfast"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pyc*"))
    executable(tmp_path / "c++" / "c++-for-tests", COMPILER)
    # -o before the file, and no -c of its own: it is the host's compiler that is asked
    executable(tmp_path / "cuda" / "bin" / "nvcc", f'{NVCC}exec {tmp_path}/c++/c++-for-tests "$@"')
    executable(tmp_path / "local" / "nvcc", f'#!/bin/sh\nexec {tmp_path}/cuda/bin/nvcc "$@"')
    libraries = tmp_path / "cuda" / "lib64"
    libraries.mkdir()
    for name in ("cudart", "c10_cuda", "torch_cuda"):
        library = ["c++", "-shared", "-x", "c", "/dev/null", "-o", libraries / f"lib{name}.so"]
        subprocess.run(library, check=True)
    return copy


def build(checkout, **environment):
    folder = checkout.parent
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")},
        "PATH": f"{folder}/local{os.pathsep}{os.environ['PATH']}",
        "CXX": f"{folder}/c++/c++-for-tests",
        "COMPILED": f"{folder}/compiled",
        "MAX_JOBS": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", SETUP],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def said(out):
    return [line for line in out.stderr.splitlines() if line.startswith("setup.py: ")]


def built(checkout):
    return sorted(path.name for path in (checkout / "cpfast").glob("*.so"))


def test_the_toolkit_is_where_nvcc_says_and_not_where_it_is(checkout):
    out = build(checkout, CPFAST_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0")
    assert out.returncode == 0, out.stdout + out.stderr
    assert said(out) == [f"setup.py: CUDA ops with {checkout.parent}/cuda, for 9.0"]
    assert built(checkout) == [CPU, CUDA]
    # left out, the library of the earlier build goes too
    out = build(checkout, CPFAST_CUDA="0")
    assert out.returncode == 0 and built(checkout) == [CPU]
    assert said(out) == ["setup.py: built without CUDA ops: CPFAST_CUDA=0"]


@pytest.mark.parametrize(
    ("part", "error", "setting"),
    [
        ("compiler", "RuntimeError: Error compiling objects|CompileError", ""),
        ("linker", "LinkError", "1"),
        ("torch's check", "CalledProcessError", ""),
    ],
)
def test_a_failed_cuda_build_leaves_the_cpus_in_place(checkout, part, error, setting):
    home = checkout.parent / "cuda"
    if part == "compiler":
        executable(home / "bin" / "nvcc", NVCC + "echo no such kernel >&2; exit 1")
    elif part == "linker":
        (home / "lib64" / "libcudart.so").write_text("not a library")
    else:
        # it is asked for the version first by setup.py, then by torch, before anything is compiled
        asked = f"[ -e {home}/asked ] && exit 1\n[ $1 = --version ] && touch {home}/asked"
        executable(home / "bin" / "nvcc", NVCC.replace("case", f"{asked}\ncase", 1))
    (checkout / "cpfast" / CUDA).write_text("of an earlier build")
    out = build(checkout, CPFAST_CUDA=setting)
    assert built(checkout) == [CPU], out.stdout + out.stderr
    assert out.returncode == (1 if setting else 0)
    assert re.fullmatch(
        f"setup.py: {'CPFAST_CUDA=1, but ' if setting else ''}the CUDA ops could not be built, "
        rf"see above \(({error}).*\); those for the CPU are in place",
        said(out)[-1],
    )


def test_without_libcudart_nothing_of_cuda_is_compiled(checkout):
    home, compiled = checkout.parent / "cuda", checkout.parent / "compiled"
    (home / "lib64" / "libcudart.so").unlink()
    lack = f"no whole CUDA toolkit: {home} (CUDA_HOME) has no libcudart.so in lib64, lib, "
    out = build(checkout, CPFAST_CUDA="1", CUDA_HOME=str(home))
    assert out.returncode == 1 and built(checkout) == [] and not compiled.exists()
    (line,) = said(out)
    assert line.startswith(f"setup.py: CPFAST_CUDA=1, but {lack}")
    out = build(checkout, CUDA_HOME=str(home))
    assert out.returncode == 0 and built(checkout) == [CPU]
    assert "/csrc/cpu/" in compiled.read_text() and "/csrc/cuda/" not in compiled.read_text()
    (line,) = said(out)
    assert line.startswith(f"setup.py: built without CUDA ops: {lack}")


def test_a_toolkit_of_another_major_version_is_refused(checkout):
    nvcc = checkout.parent / "cuda" / "bin" / "nvcc"
    nvcc.write_text(nvcc.read_text().replace("release 13.0", "release 12.8"))
    (line,) = said(build(checkout, CPFAST_CUDA="1"))
    assert line == (
        f"setup.py: CPFAST_CUDA=1, but nvcc in {checkout.parent}/cuda is of CUDA 12.8, and torch "
        "of CUDA 13.0"
    )


@pytest.mark.skipif(
    shutil.which("ninja", path=sysconfig.get_path("scripts")) is None, reason="no ninja here"
)
def test_ninja_is_found_beside_the_interpreter(checkout):
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != scripts)
    out = build(checkout, CPFAST_CUDA="0", PATH=path)
    assert out.returncode == 0 and built(checkout) == [CPU]
    assert "Falling back to using the slow distutils backend" not in out.stderr
    assert list(checkout.glob("build/temp*/build.ninja"))


@pytest.mark.parametrize("setting", ["", "0", "1"])
def test_sanitizers_are_built_in_where_they_are_asked_for(checkout, setting):
    out = build(checkout, CPFAST_CUDA="0", CPFAST_SANITIZE=setting)
    assert built(checkout) == [CPU], out.stderr
    compiled = (checkout.parent / "compiled").read_text().splitlines()
    assert len(compiled) > 5
    is_sanitized = [
        "-fsanitize=address,undefined,float-cast-overflow" in line and "-fno-wrapv" in line
        for line in compiled
    ]
    assert all(is_sanitized) if setting == "1" else not any(is_sanitized)
