"""Time series in a .ts file, as the UCR and UEA archives and aeon have them.

A header of lines that begin with @ or #; after @data a case a line, its channels and at last its
class between colons. A folder <name>/ holds <name>_TRAIN.ts and <name>_TEST.ts.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpfast.train.data import Layout, layouts
from cpfast.train.data.arrays import labelled
from cpfast.train.data.sets import FloatData
from cpfast.train.errors import UserError

TRAIN, TEST = "_TRAIN.ts", "_TEST.ts"


class Series(NamedTuple):
    """What a file holds: [N, C, T], and the class of each."""

    values: np.ndarray
    names: list[str]


def read(path: Path, *, labelled: bool = True) -> Series:
    """
    Args:
        labelled: whether the classes are needed; False: where there are none they are empty.

    Raises:
        UserError: naming the file, and the line that cannot be read.
    """
    cases: list[np.ndarray] = []
    names: list[str] = []
    is_data, has_names = False, True
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: not a readable .ts file ({error})") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if not is_data:
            has_names &= _check_header(where, line.lower(), labelled)
            is_data = line.lower() == "@data"
            continue
        *channels, name = line.split(":") if has_names else (*line.split(":"), "")
        cases.append(_numbers(where, channels, cases[0] if cases else None))
        names.append(name)
    if not cases:
        raise UserError(f"{path}: no series after a line @data")
    return Series(np.stack(cases), names)


def _check_header(where: str, line: str, labelled: bool) -> bool:
    """Whether it leaves open that series have classes."""
    key, *words = line.split()
    if key == "@timestamps" and words == ["true"]:
        raise UserError(f"{where}: series with time stamps are not read")
    if key in ("@targetlabel", "@classlabel") and words[:1] != [str(key == "@classlabel").lower()]:
        if labelled:
            raise UserError(f"{where}: its series have no classes")
        return False
    return True


def _numbers(where: str, channels: list[str], first: np.ndarray | None) -> np.ndarray:
    """[C, T] float32."""
    try:
        parts = [np.array(channel.split(","), dtype=np.float32) for channel in channels]
    except ValueError as error:  # a missing value is "?"
        raise UserError(f"{where}: {error}") from error
    lengths = {len(part) for part in parts}
    if first is not None:
        lengths.add(first.shape[1])
    if len(lengths) != 1 or (first is not None and len(parts) != len(first)):
        raise UserError(f"{where}: series must be of one length and as many channels each")
    return np.stack(parts)


def load(path: Path, limit: int | None, name: str | None = None) -> FloatData:
    """A folder's two files, or of one file also that of its other half; else a fifth is held out.

    Classes are numbered in the order of their names, or of their numbers if all are.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    if path.is_dir():
        path = path / f"{path.name}{TRAIN}"
    other = path.with_name(path.name.removesuffix(TRAIN) + TEST)
    parts = [read(part) for part in (path, other) if part == path or part.is_file()]
    found = {name for part in parts for name in part.names}
    classes = sorted(found, key=_as_number) if all(map(_is_number, found)) else sorted(found)
    values, labels = zip(
        *((part.values, np.array([classes.index(n) for n in part.names])) for part in parts),
        strict=True,
    )
    if len({part.shape[1:] for part in values}) > 1:
        shapes = [f"{part.shape[1]}x{part.shape[2]}" for part in values]
        raise UserError(f"{other}: series of {shapes[1]}, those of training of {shapes[0]}")
    return labelled(
        str(path),
        values[0],
        labels[0],
        classes,
        test=(values[1], labels[1]) if len(parts) > 1 else None,
        limit=limit,
        name=name or path.stem.removesuffix("_TRAIN"),
    )


def _is_number(name: str) -> bool:
    return name.removeprefix("-").replace(".", "", 1).isdecimal()


def _as_number(name: str) -> float:
    return float(name)


@layouts.register(
    "ts", source="timeseriesclassification.com", line="<name>_TRAIN.ts and <name>_TEST.ts"
)
def layout() -> Layout:
    return Layout(
        lambda path, limit, progress: load(path, limit),
        holds=lambda path: (path / f"{path.name}{TRAIN}").is_file(),
        is_file=lambda path: path.suffix.lower() == ".ts",
        reads=lambda path: "series",
    )
