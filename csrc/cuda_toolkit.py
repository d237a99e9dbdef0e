"""Finds the CUDA toolkit to build with. Run as a script, it prints the toolkit's folder.

CUDA_HOME, or CUDA_PATH, decides where it is set. Otherwise nvcc itself is asked, since the one in
PATH may be a script that stands elsewhere than the toolkit; then its place and /usr/local/cuda are
tried. A toolkit counts only if it has all that a build needs; without libcudart.so every file
would compile, and the linker fail.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = "/usr/local/cuda"
_MACHINE = {"aarch64": "sbsa"}.get(platform.machine(), platform.machine())
# Where NVIDIA's installers, conda and Debian put the libraries.
_PLACES = (
    "lib64", "lib", f"targets/{_MACHINE}-linux/lib", f"lib/{sysconfig.get_config_var('MULTIARCH')}"
)  # fmt: skip


class NotFound(Exception):
    """There is no whole toolkit; the message says in one line what was looked for, and where."""


@dataclass(frozen=True)
class Toolkit:
    home: Path  # bin/nvcc is in it
    libraries: Path  # libcudart.so is in it
    version: str  # of nvcc, as 13.0


def find(environment: Mapping[str, str] = os.environ) -> Toolkit:
    """The first whole toolkit.

    Raises:
        NotFound: there is none.
    """
    lacking = []
    for origin, home in _candidates(environment):
        nvcc, libraries = home / "bin" / "nvcc", _libraries(home)
        if nvcc.exists() and libraries is not None:
            return Toolkit(home, libraries, version_of(nvcc))
        lack = f"libcudart.so in {', '.join(_PLACES)}" if nvcc.exists() else "bin/nvcc"
        lacking.append(f"{home} ({origin}) has no {lack}")
    if lacking:
        raise NotFound(f"no whole CUDA toolkit: {'; '.join(lacking)}")
    raise NotFound(
        f"no CUDA toolkit: CUDA_HOME is not set, nvcc is not in PATH, {DEFAULT_HOME} does not exist"
    )


def version_of(nvcc: Path) -> str:
    found = re.search(r"release (\d+\.\d+)", _output(str(nvcc), "--version"))
    return found[1] if found else "unknown"


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Folders with where each comes from."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(name):
            yield name, Path(environment[name]).absolute()
            return
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    if nvcc is not None:
        top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "nothing.cu"), re.MULTILINE)
        if top:
            yield f"of {nvcc}", Path(top[1].strip()).resolve()
        yield "around nvcc", Path(nvcc).absolute().parents[1]
    if Path(DEFAULT_HOME).exists():
        yield "the default", Path(DEFAULT_HOME).resolve()


def _libraries(home: Path) -> Path | None:
    return next((home / p for p in _PLACES if (home / p / "libcudart.so").exists()), None)


def _output(*command: str) -> str:
    """Both streams; nvcc --dryrun writes to the second, and may fail after it named its TOP."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout


if __name__ == "__main__":
    try:
        print(find().home)
    except NotFound as error:
        sys.exit(f"cuda_toolkit.py: {error}")
