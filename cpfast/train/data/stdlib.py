"""The source of Python's standard library, as text: it installs with Python."""

from __future__ import annotations

import sys
import sysconfig
import zlib
from pathlib import Path

from cpfast.train.data import DataSet, characters, datasets
from cpfast.train.data.sets import TextData
from cpfast.train.data.text import SEPARATE
from cpfast.train.errors import UserError

HELD_OUT = 10  # about one module in so many


def load(limit: int | None) -> TextData:
    """The modules that are one file, in the order of their names; about a tenth of them, the same
    in every version of Python, is for testing. Characters outside of ASCII become "?".

    Raises:
        UserError: this Python comes without its source, or there are fewer sequences than `limit`.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = (library / f"{name}.py" for name in sorted(sys.stdlib_module_names - SEPARATE))
    parts: dict[bool, list[str]] = {True: [], False: []}
    for path in filter(Path.is_file, paths):
        text = path.read_text(encoding="utf-8", errors="replace")
        is_held_out = zlib.crc32(path.stem.encode()) % HELD_OUT == 0
        parts[is_held_out].append(text.encode("ascii", "replace").decode())
    if not all(parts.values()):
        raise UserError(f"--data stdlib: this Python comes without its source ({library})")
    train, test = ("\n".join(parts[held_out]) for held_out in (False, True))
    return characters.text_data("stdlib", train, test, limit=limit, name="stdlib")


@datasets.register("stdlib", source="python/cpython, Lib/")
def stdlib() -> DataSet:
    """The standard library's modules, in sequences of 128 characters; comes with Python."""
    return DataSet(lambda limit, progress, download: load(limit), reads="text")
