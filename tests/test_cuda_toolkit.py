"""Toolkits that stand in temporary folders, as installers and distributions lay them out."""

import os
import pathlib
import platform
import subprocess
import sys
import sysconfig

import pytest

CSRC = pathlib.Path(__file__).parents[1] / "csrc"
MACHINE = {"aarch64": "sbsa"}.get(platform.machine(), platform.machine())


def script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def toolkit(home, libraries="lib64", version="13.0"):
    """One whose nvcc says where it is and of which version."""
    script(
        home / "bin" / "nvcc",
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}.88"\n'
        f'[ "$1" = --dryrun ] && echo "#\\$ TOP={home}/bin/.." >&2\n'
        "true",
    )
    if libraries:
        (home / libraries).mkdir(parents=True)
        (home / libraries / "libcudart.so").touch()
    return home


def find(**environment):
    """What the script says, and its error. /usr/local/cuda is out of the question."""
    code = (
        f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(CSRC)!r})\n"
        "import cuda_toolkit\ncuda_toolkit.DEFAULT_HOME = '/nowhere/cuda'\n"
        "try: print(*vars(cuda_toolkit.find()).values())\n"
        "except cuda_toolkit.NotFound as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/nowhere", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return line


@pytest.fixture
def wrapper(tmp_path):
    """A folder for PATH, with a script that runs the nvcc of the toolkit elsewhere."""
    script(tmp_path / "local" / "bin" / "nvcc", f'exec {tmp_path}/cuda/bin/nvcc "$@"')
    return str(tmp_path / "local" / "bin")


@pytest.mark.parametrize(
    "libraries",
    ["lib64", "lib", f"targets/{MACHINE}-linux/lib",
     f"lib/{sysconfig.get_config_var('MULTIARCH')}"],
)  # fmt: skip
def test_nvcc_says_where_its_toolkit_is(tmp_path, wrapper, libraries):
    home = toolkit(tmp_path / "cuda", libraries)
    assert find(PATH=wrapper) == f"{home} {home / libraries} 13.0"


def test_a_link_to_nvcc_is_followed_too(tmp_path):
    home = toolkit(tmp_path / "cuda-12.8", version="12.8")
    (tmp_path / "cuda").symlink_to(home)
    assert find(PATH=f"{tmp_path}/cuda/bin") == f"{home} {home}/lib64 12.8"


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_the_environment_decides(tmp_path, wrapper, name):
    toolkit(tmp_path / "cuda")
    home = toolkit(tmp_path / "other")
    assert find(PATH=wrapper, **{name: str(home)}) == f"{home} {home}/lib64 13.0"
    # and is not replaced by another that is whole
    assert find(PATH=wrapper, **{name: str(tmp_path / "local")}) == (
        f"no whole CUDA toolkit: {tmp_path}/local ({name}) has no libcudart.so in lib64, lib, "
        f"targets/{MACHINE}-linux/lib, lib/{sysconfig.get_config_var('MULTIARCH')}"
    )
    assert find(PATH=wrapper, **{name: "/nowhere"}) == (
        f"no whole CUDA toolkit: /nowhere ({name}) has no bin/nvcc"
    )


def test_cuda_home_goes_before_cuda_path(tmp_path):
    home, other = toolkit(tmp_path / "a"), toolkit(tmp_path / "b")
    assert find(CUDA_HOME=str(home), CUDA_PATH=str(other)).startswith(f"{home} ")
    assert find(CUDA_HOME="", CUDA_PATH=str(other)).startswith(f"{other} ")


def test_the_libraries_may_lie_around_an_nvcc_whose_top_has_none(tmp_path, wrapper):
    toolkit(tmp_path / "cuda", libraries=None)
    libraries = tmp_path / "local" / "lib"
    libraries.mkdir()
    (libraries / "libcudart.so").touch()
    assert find(PATH=wrapper) == f"{tmp_path}/local {libraries} 13.0"


def test_an_nvcc_that_cannot_be_asked_is_taken_where_it_is(tmp_path):
    home = toolkit(tmp_path / "cuda")
    script(home / "bin" / "nvcc", "exit 1")
    assert find(PATH=f"{home}/bin") == f"{home} {home}/lib64 unknown"


def test_what_was_looked_for_is_said_in_one_line(tmp_path, wrapper):
    toolkit(tmp_path / "cuda", libraries=None)
    line = find(PATH=wrapper)
    assert f"{tmp_path}/cuda (of {wrapper}/nvcc) has no libcudart.so in lib64, lib," in line
    assert f"{tmp_path}/local (around nvcc) has no libcudart.so in lib64, lib," in line
    assert find() == (
        "no CUDA toolkit: CUDA_HOME is not set, nvcc is not in PATH, /nowhere/cuda does not exist"
    )


def test_as_a_script_it_prints_the_folder(tmp_path):
    home = toolkit(tmp_path / "cuda")

    def run(home):
        return subprocess.run(
            [sys.executable, CSRC / "cuda_toolkit.py"],
            env={**os.environ, "CUDA_HOME": str(home)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert run(home).stdout == f"{home}\n"
    failed = run(tmp_path)
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr == (
        f"cuda_toolkit.py: no whole CUDA toolkit: {tmp_path} (CUDA_HOME) has no bin/nvcc\n"
    )
