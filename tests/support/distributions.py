"""What wheels and source distributions of cpfast must hold, and must not.

``python distributions.py FILE ...`` prints what is wrong with each, and ends with 1 if anything is.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENTS = (".py", ".pyi", ".toml", ".typed")
OF_THE_SOURCE = {
    "": ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md",
         "pyproject.toml", "setup.py"),
    "benchmarks": (".md", ".py", ".sh"),
    "cpfast": CONTENTS,
    "csrc": (".cpp", ".cu", ".h", ".py"),
    "docs": (".css", ".md", ".png", ".py", ".rst"),
    "examples": (".md", ".py"),
    "tests": (".cpp", ".h", ".py"),
}  # fmt: skip
MADE = {"PKG-INFO", "setup.cfg"}
# What a build of the site leaves behind, and results.
LEFT_OUT = ("benchmarks/results", "docs/_build", "docs/measured", "docs/methods", "docs/sources")
# An absolute path of a source or a header: __FILE__ in a check, or what a debugger reads.
FOLDERS_OF_A_BUILD = re.compile(rb"(?<![\w.])/[\w.+-]+/[\w.+/-]*\.(?:h|hpp|cpp|cu)\b")
# What the stable ABI leaves behind: torch's C++ names change from release to release.
NAMES_OF_TORCH = re.compile(r"_Z\w*(?<!\d)(?:2at|3c10|5torch)\w*")
LINKED = re.compile(
    r"lib(?:torch|torch_cpu|torch_cuda|c10|c10_cuda|cudart|stdc\+\+|m|gcc_s|c|dl|rt|pthread)\.so"
    r"|ld-linux"
)


def sources(folder: str = "cpfast") -> set[str]:
    """The files of the checkout that belong to a distribution, by their paths in it."""
    if not folder:
        return set(OF_THE_SOURCE[""])
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in OF_THE_SOURCE[folder]
        and path.is_file()
        and not any(path.is_relative_to(ROOT / folder) for folder in LEFT_OUT)
    }


def of_names(names: set[str], tag: str) -> list[str]:
    """What is wrong with a wheel's files, as its RECORD has them, and its tag.

    Python's own copies and the command are those of an installed one, and left alone.
    """
    names = {name for name in names if not name.endswith((".pyc", "bin/cpfast"))}
    faults = []
    if not (match := re.fullmatch(r"cp(3\d+)-cp\1-(?:(?:many|musl)?linux\d*|macosx)_\w+", tag)):
        return [f"its tag {tag} is not that of one CPython on one platform"]
    compiled = {name for name in names if name.endswith(".so")}
    for library in ("_C", "_cuda"):
        built = {name for name in compiled if name.startswith(f"cpfast/{library}.")}
        compiled -= built
        if len(built) > 1 or (library == "_C" and not built):
            faults.append(f"{library}: {sorted(built)}")
        faults += [f"{name}: not of {tag}" for name in built if f"-{match[1]}-" not in name]
    in_dist_info = {name for name in names if re.match(r"cpfast-[\w.+]+\.dist-info/", name)}
    if not any(name.endswith("/LICENSE") for name in in_dist_info):
        faults.append("has no licence")
    python = {name for name in names - in_dist_info if not name.endswith(".so")}
    faults += [f"{name}: is missing" for name in sorted(sources() - python)]
    faults += [f"{name}: should not be there" for name in sorted(python - sources() | compiled)]
    return faults


def of_library(library: pathlib.Path) -> list[str]:
    """What is wrong with the names that a compiled library asks for, and with whom it asks."""
    faults = []
    if shutil.which("nm"):
        asked = _told("nm", "-D", "--undefined-only", str(library)).split()
        faults += [f"asks torch for {name}" for name in asked if NAMES_OF_TORCH.fullmatch(name)]
    if shutil.which("readelf"):
        for kind, value in re.findall(
            r"\((NEEDED|RPATH|RUNPATH)\).*\[(.*)\]", _told("readelf", "-d", str(library))
        ):
            if kind != "NEEDED" or not LINKED.match(value):
                faults.append(f"{kind.lower()} {value}")
    return [f"{library.name}: {fault}" for fault in faults]


def folders(library: pathlib.Path) -> list[str]:
    """The files of the machine it was built on that a compiled library names."""
    found = {name.decode() for name in FOLDERS_OF_A_BUILD.findall(library.read_bytes())}
    return [f"{library.name}: names {name}" for name in sorted(found)]


def of_wheel(wheel: pathlib.Path, work: pathlib.Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        archive.extractall(work, [name for name in names if name.endswith(".so")])
        about = next(name for name in names if name.endswith(".dist-info/WHEEL"))
        tags = re.findall(r"^Tag: (.*)$", archive.read(about).decode(), re.MULTILINE)
    faults = [fault for tag in tags for fault in of_names(names, tag)]
    for library in sorted((work / "cpfast").glob("*.so")):
        faults += of_library(library) + folders(library)
    return faults


def of_source_distribution(path: pathlib.Path) -> list[str]:
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    names = {member.name.partition("/")[2] for member in members}
    expected = {name for folder in OF_THE_SOURCE for name in sources(folder)}
    faults = [f"{name}: is missing" for name in sorted(expected - names)]
    extra = {name for name in names - expected - MADE if not name.startswith("cpfast.egg-info/")}
    faults += [f"{name}: should not be there" for name in sorted(extra)]
    faults += [f"{member.name}: not a plain file" for member in members if not member.isfile()]
    return faults


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(paths: list[str]) -> int:
    bad = 0
    for path in map(pathlib.Path, paths):
        if path.suffix == ".whl":
            with tempfile.TemporaryDirectory() as work:
                faults = of_wheel(path, pathlib.Path(work))
        else:
            faults = of_source_distribution(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {'wrong' if faults else 'right'}")
        print("".join(f"  {fault}\n" for fault in faults), end="")
        bad += bool(faults)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
