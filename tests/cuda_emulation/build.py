"""Compiles csrc/cuda for the CPU, into the ops of torch.ops.cpfast_emulated."""

import pathlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

from torch.utils import cpp_extension

HERE = pathlib.Path(__file__).parent.resolve()

FLAGS = [
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    # Those of nvcc, and torch's own Tensor in what is not hidden.
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
]
# The handlers are in emulation.cpp.
SANITIZERS = [
    "-fsanitize=alignment,bounds,integer-divide-by-zero,null,shift,signed-integer-overflow",
    "-fno-sanitize-recover=all",
]
# nvcc makes one rounding of a product and a sum, as g++ does, but not at -O1 alone.
CONTRACTION = ["-mfma", "-ffp-contract=fast", "-fexpensive-optimizations"]


def contracts() -> bool:
    """Whether the kernels are compiled with contraction: the CPU must have the instruction."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    return cpuinfo.exists() and " fma " in cpuinfo.read_text()


def _replace(path: pathlib.Path, pattern: str, replacement: str) -> None:
    """Replaces every match. Where there is none, a kernel would escape its tests."""
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.DOTALL)
    if count == 0:
        raise RuntimeError(f"{path.name}: nothing matches {pattern!r}, which build.py replaces")
    path.write_text(text)


def _prepare(csrc: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    """Copies the sources, and replaces in them what a host cannot compile or guard."""
    for name in ("cpu", "cuda"):
        (folder / name).mkdir(parents=True)
    parts = [*csrc.glob("*.h"), *csrc.glob("cuda/*"), csrc / "cpu" / "isa.h", csrc / "module.cpp"]
    for source in parts:
        shutil.copyfile(source, folder / source.relative_to(csrc))
    shutil.copyfile(HERE / "launch.h", folder / "cuda" / "launch.h")
    shutil.copyfile(HERE / "emulation.cpp", folder / "emulation.cpp")

    _replace(
        folder / "cuda" / "device.h",
        r'asm volatile\("st\.global\.v4\.u32 .*?: "memory"\);',
        "emulation::store(reinterpret_cast<uint4*>(to), words);",
    )
    # What is left of inline assembly does not compile.
    for source in folder.glob("cuda/*"):
        exponential = (
            r'asm\("ex2\.approx\.ftz\.f32 %0, %1;"\s*:\s*"=f"\((\w+)\)\s*:\s*"f"\((.+?)\)\);'
        )
        text = re.sub(exponential, r"\1 = emulation::exp2_approx(\2);", source.read_text())
        source.write_text(text)
    kernels = sorted(folder.glob("cuda/*.cu"))
    for kernel in kernels:
        _replace(
            kernel,
            r"STABLE_TORCH_LIBRARY_IMPL\(cpfast, CUDA, m\)",
            "STABLE_TORCH_LIBRARY_IMPL(cpfast_emulated, CPU, m)",
        )
    for source in folder.glob("cuda/*"):
        if "stable::new_empty" in source.read_text():  # record_scores allocates nothing
            _replace(source, r"torch::stable::new_empty\(", "emulation::new_empty(")
    _replace(
        folder / "module.cpp",
        r".*(STABLE_TORCH_LIBRARY\()cpfast(, m\) \{.*?\n\}\n).*",
        r"#include <torch/csrc/stable/library.h>\n\1cpfast_emulated\2",
    )
    return [*kernels, folder / "module.cpp", folder / "emulation.cpp"]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-10_000:]}")


def build(csrc: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The shared library, built in ``folder``. RuntimeError tells what the compiler said."""
    sources = _prepare(csrc, folder / "csrc")
    kernel_flags = [*SANITIZERS, *(CONTRACTION if contracts() else [])]
    includes = [f"-I{HERE}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]

    def compile_one(source: pathlib.Path) -> str:
        compiled = str(source.with_suffix(".o"))
        options = [*FLAGS, *(kernel_flags if source.suffix == ".cu" else []), *includes]
        _run("g++", *options, "-x", "c++", "-c", str(source), "-o", compiled)
        return compiled

    with ThreadPoolExecutor(max_workers=2) as pool:
        compiled = list(pool.map(compile_one, sources))
    library = folder / "libcpfast_emulated.so"
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    # The library has no undefined symbols but torch's, not even a sanitizer's.
    _run("g++", "-shared", "-Wl,-z,defs", "-o", str(library), *compiled, *paths, "-ltorch_cpu")
    return library
