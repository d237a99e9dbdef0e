"""Builds the checkout in place, unless what lies there was built from it: in_place.py [--cuda].

The sources' contents decide, not their times: a checkout that was copied over an earlier one may
hold changed files that are older than what was built from the earlier.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import sysconfig
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAMP = ROOT / "build" / "in_place.json"
SOURCES = (".py", ".h", ".cpp", ".cu", ".cuh")
LOADS = (
    "import sys; from cpfast import _backend as b; "
    "sys.exit(b.NATIVE is None or b.CUDA_LOADED < (sys.argv[1] == 'cuda'))"
)


def digest(*names: str) -> str:
    """Of the sources in files and folders of the checkout."""
    found = hashlib.sha256()
    for name in names:
        path = ROOT / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.suffix in SOURCES and file.is_file():
                content = file.read_bytes()
                found.update(f"{file.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:16]


def architectures() -> str:
    """Of the GPU alone, which takes a third of the time; "" for setup.py's own."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    first = out.strip().splitlines()[:1]
    return first[0].strip() if first and first[0].strip().replace(".", "", 1).isdigit() else ""


def wanted(cuda: bool) -> dict[str, str | bool]:
    return {
        "sources": digest("csrc", "setup.py"),
        "python": sys.version,
        "torch": metadata.version("torch"),
        "cuda": cuda,
        "architectures": os.environ.get("TORCH_CUDA_ARCH_LIST")
        or (architectures() if cuda else ""),
    }


def libraries(cuda: bool) -> list[pathlib.Path]:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return [ROOT / "cpfast" / f"{name}{suffix}" for name in ("_C", "_cuda")[: 1 + cuda]]


def is_built(description: dict[str, str | bool]) -> bool:
    """A build for CUDA serves the CPU too."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    cuda = bool(description["cuda"])
    of_cuda = () if cuda else ("cuda", "architectures")
    same = all(stamp.get(key) == description[key] for key in description if key not in of_cuda)
    return same and all(path.exists() for path in libraries(cuda))


def build(cuda: bool) -> None:
    """Raises SystemExit with what failed."""
    description = wanted(cuda)
    if is_built(description):
        print("in_place.py: built already")
        return
    STAMP.unlink(missing_ok=True)
    environment = {**os.environ, "CPFAST_CUDA": str(int(cuda))}
    if description["architectures"]:
        environment["TORCH_CUDA_ARCH_LIST"] = str(description["architectures"])
    # A folder of its own for other sources: ninja too goes by times.
    objects = ROOT / "build" / f"in_place-{description['sources']}"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    built = subprocess.run([*command, "--build-temp", str(objects)], cwd=ROOT, env=environment)
    if built.returncode:
        sys.exit(f"in_place.py: the build failed (exit {built.returncode})")
    environment["PYTHONPATH"] = str(ROOT)
    check = [sys.executable, "-c", LOADS, "cuda" if cuda else "cpu"]
    if subprocess.run(check, cwd=ROOT / "build", env=environment).returncode:
        sys.exit("in_place.py: built, but the libraries cannot be loaded")
    STAMP.write_text(json.dumps(description, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--cuda"]):
        sys.exit("usage: in_place.py [--cuda]")
    build(cuda="--cuda" in sys.argv)
