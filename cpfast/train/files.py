"""Files that are whole or were never written, and JSON that is readable or refused in a line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cpfast.train.errors import UserError

TEMPORARY = ".writing"


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace `path` by what `write(file)` writes, or leave it as it was.

    Its folder must exist: one that was removed does not come back with this file alone in it.
    """
    with naming(path):
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}-", suffix=TEMPORARY, dir=path.parent
        )
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing, such as that of a full disk, come without the file's name: add it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`.

    Raises:
        UserError: the file holds something else.
    """
    try:
        value = parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return value


def parsed(text: str) -> Any:
    """
    Raises:
        ValueError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def new_folder(parent: Path, name: str) -> Path:
    """Make and return parent/name-1, or the first number that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
