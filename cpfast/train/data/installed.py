"""Data that lie in packages of others: read as files, so that nothing of theirs is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cpfast.train.errors import MissingLibrary


def locate(package: str, file: str, name: str) -> Path:
    """Where a package has a file.

    Args:
        name: of the data set.

    Raises:
        MissingLibrary: it is not installed, or has no such file; names how to install it.
    """
    spec = find_spec(package)
    for place in spec.submodule_search_locations or () if spec is not None else ():
        if (found := Path(place) / file).is_file():
            return found
    missing = "is not installed" if spec is None else f"has no {file} in this version"
    raise MissingLibrary(f"--data {name}: {package} {missing}; pip install {package}")
