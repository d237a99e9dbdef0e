"""What is in the source distribution and in the wheel that is built from it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata

import pytest
from support import distributions
from support.compilers import COMPILER, executable

from cpfast import _backend

ROOT = pathlib.Path(__file__).parents[1]
# What lies about in a checkout where somebody works.
STRAYS = ["cpfast/_C.so", "cpfast/notes.txt", "cpfast/__pycache__/x.pyc", "csrc/x.o", "runs/x.json",
          "tests/data.npz", "benchmarks/results/x.json", "benchmarks/x.tar.gz", "docs/x.ipynb",
          "cpfast/recipes/x.toml.orig", ".venv/x.py"]  # fmt: skip


def test_the_ops_ask_torch_for_what_its_stable_abi_has():
    if _backend.NATIVE is None:
        pytest.skip("no compiled ops")
    for library in pathlib.Path(_backend.NATIVE.__file__).parent.glob("*.so"):
        assert distributions.of_library(library) == []


def test_what_is_installed_is_what_a_wheel_holds():
    try:
        installed = metadata.distribution("cpfast")
    except metadata.PackageNotFoundError:
        pytest.skip("cpfast is not installed")
    about = installed.read_text("WHEEL")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if about is None or origin.get("dir_info", {}).get("editable"):
        pytest.skip("cpfast is installed in place")
    files = installed.files or []
    for tag in (line.split()[1] for line in about.splitlines() if line.startswith("Tag:")):
        assert distributions.of_names({str(file) for file in files}, tag) == []
    for file in files:
        if file.suffix == ".so":
            assert distributions.folders(pathlib.Path(str(file.locate()))) == []


@pytest.mark.slow
def test_a_source_distribution_builds_a_wheel_and_nothing_else_is_in_them(tmp_path):
    for module in ("pybind11", "setuptools"):
        pytest.importorskip(module)
    if shutil.which("c++") is None:
        pytest.skip("no c++ here")
    copy, dist = tmp_path / "checkout", tmp_path / "dist"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "results", ".*", "build", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name in STRAYS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("stray")

    def build(kind, folder):
        # Not compiled: what the object files hold makes no difference to the names.
        executable(tmp_path / "c++" / "c++-for-tests", COMPILER)
        environment = {
            **os.environ,
            "CPFAST_CUDA": "0",
            "CXX": f"{tmp_path}/c++/c++-for-tests",
            "COMPILED": f"{tmp_path}/compiled",
            "MAX_JOBS": "1",
        }
        hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(dist)!r})"
        done = subprocess.run(
            [sys.executable, "-c", hook],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    dist.mkdir()
    build("sdist", copy)
    (source,) = dist.iterdir()
    assert distributions.of_source_distribution(source) == []
    assert source.stat().st_size < 2_000_000
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    build("wheel", tmp_path / source.name.removesuffix(".tar.gz"))
    (wheel,) = dist.glob("*.whl")
    assert distributions.of_wheel(wheel, tmp_path) == []


@pytest.mark.parametrize(
    ("tag", "names", "fault"),
    [
        ("py3-none-any", [], "its tag py3-none-any is not that of one CPython on one platform"),
        ("cp311-abi3-linux_x86_64", [], "its tag cp311-abi3-linux_x86_64 is not that of one"),
        ("cp311-cp311-linux_x86_64", ["tests/conftest.py"], "tests/conftest.py: should not be"),
        (
            "cp311-cp311-linux_x86_64",
            ["cpfast/_D.cpython-311-x.so"],
            "cpfast/_D.cpython-311-",
        ),
        ("cp312-cp312-linux_x86_64", [], "cpfast/_C.cpython-311-x.so: not of cp312-cp312-linux_x"),
    ],
)
def test_what_is_wrong_is_named(tag, names, fault):
    right = {*distributions.sources(), "cpfast/_C.cpython-311-x.so", "cpfast-1.0.dist-info/LICENSE"}
    assert distributions.of_names(right, "cp311-cp311-manylinux_2_28_x86_64") == []
    (told,) = distributions.of_names(right | set(names), tag)
    assert told.startswith(fault)
    (told,) = distributions.of_names(right - {"cpfast/py.typed"}, "cp311-cp311-linux_x86_64")
    assert told == "cpfast/py.typed: is missing"


def test_a_name_of_torchs_cpp_is_found():
    for name in (
        "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs",
        "_ZTIN3c105ErrorE",
        "_ZNSt6vectorIN2at6TensorESaIS1_EE9push_backEOS1_",
    ):
        assert distributions.NAMES_OF_TORCH.fullmatch(name)
    assert not distributions.NAMES_OF_TORCH.fullmatch("_ZNSt6vectorIlSaIlEE9push_backEOl")
    assert not distributions.NAMES_OF_TORCH.fullmatch("_ZNSt12attributes12at_an_offsetEv")
    assert not distributions.NAMES_OF_TORCH.fullmatch("torch_call_dispatcher")


def test_the_folders_of_a_build_are_found(tmp_path):
    library = tmp_path / "_C.so"
    library.write_bytes(b"\0/home/me/cpfast/csrc/checks.h\0csrc/cpu/isa.h\0//a.b/\0")
    assert distributions.folders(library) == ["_C.so: names /home/me/cpfast/csrc/checks.h"]
