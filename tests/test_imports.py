"""Which parts of the package may import which, read from the sources."""

import ast
from pathlib import Path

import pytest

import cpfast

PACKAGE = Path(cpfast.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What a part must not import; "" is the library.
FORBIDDEN = {
    "": {"train", "studies", "cli", "integrations"},
    "train": {"studies", "cli", "integrations"},
    "studies": {"cli", "integrations"},
    "integrations": {"train", "studies", "cli"},
    "cli": {"integrations"},
}
# Beside that, imported where they are asked for: the meter of energy, and the models of runs.
ALLOWED = {
    ("", "cpfast.train"),
    ("", "cpfast.train.trained"),
    ("", "cpfast.train.trained.TrainedModel"),
    ("", "cpfast.train.trained.load"),
    ("integrations", "cpfast.train.energy"),
    ("integrations", "cpfast.train.energy.EnergyMeter"),
}


def part_of(module: str) -> str:
    """The part that cpfast.<part>.... belongs to."""
    first = module.split(".")[1] if "." in module else ""
    return first if first in FORBIDDEN else ""


def imported(path: Path) -> set[str]:
    """The modules of cpfast that a source imports, at whatever depth of its code."""
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "cpfast"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_part_imports_nothing_downstream(path):
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    part = "cli" if path.name == "__main__.py" else part_of(module)
    wrong = {name for name in imported(path) if part_of(name) in FORBIDDEN[part]}
    assert {name for name in wrong if (part, name) not in ALLOWED} == set()


def test_the_imports_are_seen(tmp_path):
    assert len(SOURCES) > 80
    assert "cpfast.train.run" in imported(PACKAGE / "studies" / "runner.py")
    assert "cpfast.ops" in imported(PACKAGE / "__init__.py")
    assert part_of("cpfast.train.run") == "train" and part_of("cpfast.trainer") == ""


@pytest.mark.parametrize("study", sorted(p.parent.name for p in PACKAGE.glob("studies/*/study.py")))
def test_nothing_outside_of_a_study_imports_it(study):
    folder = PACKAGE / "studies" / study
    outside = [path for path in SOURCES if folder not in path.parents]
    for path in outside:
        names = {
            name for name in imported(path) if f"{name}.".startswith(f"cpfast.studies.{study}.")
        }
        assert names == set(), path
