"""The table and the pictures of a study, beside its results.json."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from cpfast.studies.document import document
from cpfast.studies.store import RESULTS, Results, has_curves, study_of
from cpfast.train.errors import UserError
from cpfast.train.runfolder import write_atomically

TABLE = "table.md"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def show(path: Path, results: Results, plot: bool) -> str:
    """Write the Markdown table and, with `plot`, the pictures; what to print.

    A folder that cannot be written to is said, and no error: the table can be printed. Pictures of
    results that are kept without curves stay as they are.

    Raises:
        UserError: nothing is finished yet.
    """
    if not results["runs"]:
        raise UserError(f"{path / RESULTS}: no run is finished yet")
    made = document(results)
    pictures = study_of(results).pictures(results)
    plot = plot and has_curves(results)
    drawn = [_written("picture", path / name, draw) for name, draw in pictures.items() if plot]
    links = [f"\n![{name}]({name})\n" for name in pictures if (path / name).exists()]
    text = made.markdown() + "".join(links)

    def write(table: Path) -> None:
        write_atomically(table, lambda file: file.write(text.encode()))

    return "\n".join([made.text(), _written("table", path / TABLE, write), *drawn])


def _written(what: str, path: Path, write: Callable[[Path], None]) -> str:
    try:
        write(path)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return f"{what} not written: {path}: {error.strerror}"
    return f"{what}: {path}"
