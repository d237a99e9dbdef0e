"""Builds cpfast/_C (ops for the CPU, and the Python module) and cpfast/_cuda (ops for CUDA).

CPFAST_CUDA=1 demands the CUDA library, CPFAST_CUDA=0 leaves it out; unset, it is built where
torch has CUDA and nvcc is found. TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

# The oldest torch whose stable ABI the ops use: 2.11, as TORCH_TARGET_VERSION encodes it.
TORCH_TARGET_VERSION = "0x020b000000000000"
OLDEST_TORCH = "2.11"
# Ampere and Hopper in machine code; PTX for whatever comes after.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"

ROOT = pathlib.Path(__file__).parent.resolve()
# No -march: the kernels choose their instruction set at run time, and the wheel serves every CPU.
CXX_FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-attributes"]
NVCC_FLAGS = ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden"]


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def toolkit_version() -> str:
    home = cpp_extension.CUDA_HOME
    nvcc = str(pathlib.Path(home, "bin", "nvcc")) if home else "nvcc"
    out = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", out)
    return found[1] if found else "unknown"


def wants_cuda() -> bool:
    setting = os.environ.get("CPFAST_CUDA", "")
    if setting not in ("", "0", "1"):
        sys.exit(f"setup.py: CPFAST_CUDA: expected 0, 1 or nothing, got {setting!r}")
    missing = []
    if torch.version.cuda is None:
        missing.append(
            f"torch {torch.__version__} has no CUDA (install a CUDA build of torch, "
            "and build with --no-build-isolation)"
        )
    if cpp_extension.CUDA_HOME is None and shutil.which("nvcc") is None:
        missing.append("nvcc is not found (install the CUDA toolkit, or set CUDA_HOME)")
    elif torch.version.cuda is not None:
        # torch refuses to build across major versions.
        toolkit = toolkit_version()
        if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
            missing.append(f"nvcc is of CUDA {toolkit}, and torch of CUDA {torch.version.cuda}")
    if setting == "1" and missing:
        sys.exit("setup.py: CPFAST_CUDA=1, but " + "; ".join(missing))
    return setting != "0" and not missing


def extension(name: str, files: list[str], *, cuda: bool) -> Extension:
    """An extension that links to libtorch through its C shims alone."""
    definitions: dict[str, str | None] = {
        "TORCH_TARGET_VERSION": TORCH_TARGET_VERSION,
        "CPFAST_OLDEST_TORCH": f'"{OLDEST_TORCH}"',
        "CPFAST_BUILT_WITH_TORCH": f'"{torch.__version__}"',
        "CPFAST_CXX_FLAGS": '"' + " ".join(CXX_FLAGS) + '"',
        "CPFAST_CUDA_VERSION": f'"{torch.version.cuda}"' if CUDA else '"none"',
        "CPFAST_CUDA_ARCHITECTURES": f'"{ARCHITECTURES}"' if CUDA else '"none"',
    }
    if cuda:
        definitions["USE_CUDA"] = None
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return make(
        name,
        files,
        include_dirs=[pybind11.get_include()],
        define_macros=list(definitions.items()),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
    )


CUDA = wants_cuda()
ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
# With no GPU visible, torch would look for one to choose an architecture, and fail.
os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES

extensions = [extension("cpfast._C", ["csrc/module.cpp", *sources("cpu/*.cpp")], cuda=False)]
if CUDA:
    extensions.append(extension("cpfast._cuda", sources("cuda/*.cu"), cuda=True))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
)
