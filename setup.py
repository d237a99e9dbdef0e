"""Builds cpfast/_C (ops for the CPU, and the Python module) and cpfast/_cuda (ops for CUDA).

CPFAST_CUDA=1 demands the CUDA library, CPFAST_CUDA=0 leaves it out; unset, it is built where
torch has CUDA and csrc/cuda_toolkit.py finds a toolkit, and where that fails, _C stands alone.
TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured. CPFAST_SANITIZE=1 builds _C with AddressSanitizer
and UndefinedBehaviorSanitizer, for tests (CONTRIBUTING.md).
"""

import os
import pathlib
import shutil
import sys
import sysconfig
import textwrap

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = pathlib.Path(__file__).parent.resolve()
# A build in isolation does not look for modules here.
sys.path.insert(0, str(ROOT / "csrc"))

import cuda_toolkit  # noqa: E402

# The oldest torch whose stable ABI the ops use: 2.11, as TORCH_TARGET_VERSION encodes it.
TORCH_TARGET_VERSION = "0x020b000000000000"
OLDEST_TORCH = "2.11"
# Ampere and Hopper in machine code; PTX for whatever comes after.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
CUDA = "cpfast._cuda"

# No -march: the kernels choose their instruction set at run time, and the wheel serves every CPU.
# What may be uninitialised is so in GCC's own header of AVX-512. -g0, for many a Python hands on a
# -g: six sevenths of the file would be for a debugger, the folders of this build among it.
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wno-psabi",
             "-Wno-attributes", "-Wno-maybe-uninitialized"]  # fmt: skip
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow",
              "-fno-sanitize-recover=undefined,float-cast-overflow"]  # fmt: skip
# Checks name the file they stand in: not by the folders of this build.
SHORTER_NAMES = [f"-fmacro-prefix-map={path}/=" for path in (*cpp_extension.include_paths(), ROOT)]
NVCC_FLAGS = ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden",
              *(f"-Xcompiler={flag}" for flag in SHORTER_NAMES)]  # fmt: skip


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def find_cuda() -> cuda_toolkit.Toolkit:
    """The toolkit to build the CUDA ops with.

    Raises:
        NotFound: with the reason to leave them out.
    """
    if SETTING == "0":
        raise cuda_toolkit.NotFound("CPFAST_CUDA=0")
    if torch.version.cuda is None:
        raise cuda_toolkit.NotFound(
            f"torch {torch.__version__} has no CUDA (install a CUDA build of torch, "
            "and build with --no-build-isolation)"
        )
    toolkit = cuda_toolkit.find()
    # torch refuses to build across major versions.
    if toolkit.version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise cuda_toolkit.NotFound(
            f"nvcc in {toolkit.home} is of CUDA {toolkit.version}, and torch of CUDA "
            f"{torch.version.cuda}"
        )
    return toolkit


def put_ninja_in_path() -> None:
    """pip puts it beside the interpreter, whose folder is in PATH in an activated venv alone.

    Without ninja the files are compiled one after the other.
    """
    scripts = sysconfig.get_path("scripts")
    if shutil.which("ninja", path=scripts):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])


def extension(name: str, files: list[str], *, cuda: bool) -> Extension:
    """An extension that links to libtorch through its C shims alone."""
    definitions: dict[str, str | None] = {
        "TORCH_TARGET_VERSION": TORCH_TARGET_VERSION,
        "CPFAST_OLDEST_TORCH": f'"{OLDEST_TORCH}"',
        "CPFAST_BUILT_WITH_TORCH": f'"{torch.__version__}"',
        "CPFAST_CXX_FLAGS": '"' + " ".join(CXX_FLAGS) + '"',
        "CPFAST_CUDA_VERSION": f'"{torch.version.cuda}"' if TOOLKIT else '"none"',
        "CPFAST_CUDA_ARCHITECTURES": f'"{ARCHITECTURES}"' if TOOLKIT else '"none"',
    }
    if cuda:
        definitions["USE_CUDA"] = None
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return make(
        name,
        files,
        include_dirs=[pybind11.get_include()],
        library_dirs=[str(TOOLKIT.libraries)] if cuda else [],
        define_macros=list(definitions.items()),
        extra_compile_args={"cxx": [*CXX_FLAGS, *SHORTER_NAMES], "nvcc": NVCC_FLAGS},
        extra_link_args=[] if cuda or SANITIZE != "1" else SANITIZERS,
    )


class BuildExtensions(cpp_extension.BuildExtension):
    """Builds the CPU's extension, and then CUDA's, whose failure leaves the CPU's in place."""

    def run(self) -> None:
        *cpu, cuda = self.extensions if TOOLKIT else [*self.extensions, None]
        # One of an earlier build must not be loaded beside what is built now.
        in_place, built = self.get_ext_fullpath(CUDA), self.get_ext_filename(CUDA)
        for library in (pathlib.Path(in_place), pathlib.Path(self.build_lib, built)):
            library.unlink(missing_ok=True)
        self._build(cpu)
        if cuda is None:
            return say(f"built without CUDA ops: {WITHOUT}")
        say(f"CUDA ops with {TOOLKIT.home}, for {ARCHITECTURES}")
        try:
            self._build([cuda])
        # of compiler and linker, or of what torch checks before them
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
            message = (
                f"the CUDA ops could not be built, see above ({reason}); those for the CPU are in "
                "place"
            )
            if SETTING == "1":
                sys.exit(f"setup.py: CPFAST_CUDA=1, but {message}")
            self.extensions = cpu  # what there is to install
            return say(message)
        self.extensions = [*cpu, cuda]

    def _build(self, extensions: list[Extension]) -> None:
        compiler = self.compiler
        self.extensions = extensions
        super().run()
        self.compiler = compiler  # its name, of which the run made an object


def say(message: str) -> None:
    print(f"setup.py: {message}", file=sys.stderr, flush=True)


SETTING, SANITIZE = (os.environ.get(name, "") for name in ("CPFAST_CUDA", "CPFAST_SANITIZE"))
for name, value in (("CPFAST_CUDA", SETTING), ("CPFAST_SANITIZE", SANITIZE)):
    if value not in ("", "0", "1"):
        sys.exit(f"setup.py: {name}: expected 0, 1 or nothing, got {value!r}")
if SANITIZE == "1":
    # The last of each counts: Python brings -fwrapv, under which no overflow is one.
    CXX_FLAGS += [*SANITIZERS, "-fno-omit-frame-pointer", "-fno-wrapv", "-g1", "-O1"]
TOOLKIT, WITHOUT = None, ""
try:
    TOOLKIT = find_cuda()
    # torch guessed it from where nvcc lies, which may be a script in another folder.
    cpp_extension.CUDA_HOME = str(TOOLKIT.home)
except cuda_toolkit.NotFound as error:
    if SETTING == "1":
        sys.exit(f"setup.py: CPFAST_CUDA=1, but {error}")
    WITHOUT = str(error)
ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
# With no GPU visible, torch would look for one to choose an architecture, and fail.
os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES
put_ninja_in_path()

extensions = [extension("cpfast._C", ["csrc/module.cpp", *sources("cpu/*.cpp")], cuda=False)]
if TOOLKIT:
    extensions.append(extension(CUDA, sources("cuda/*.cu"), cuda=True))

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtensions})
