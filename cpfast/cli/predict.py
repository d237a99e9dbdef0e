"""`cpfast predict`: the classes of files, as CSV."""

from __future__ import annotations

import argparse
import csv
import io
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cpfast.cli.eval import add_model_options, open_model
from cpfast.train.data.listing import is_hidden
from cpfast.train.errors import UserError
from cpfast.train.files import write_atomically
from cpfast.train.inputs import Input
from cpfast.train.trained import TrainedModel

BATCH = 64  # files
DESCRIPTION = """\
Predict the classes of what is in files by the model of a finished run, as CSV: file, class,
probability. Images may be of any size; of tables (.csv, .tsv, .parquet), arrays (.npz) and time
series (.ts) each row or series is predicted, as FILE:NUMBER, whether classes stand in the file or
not. A file that cannot be read is named, and the others are predicted; the exit status is then 1.
"""
EXAMPLE = """\
example:
  cpfast train --data photos --out runs/photos
  cpfast predict runs/photos new.jpg more-photos/ --top 3 --out classes.csv
  cpfast predict runs/table new-rows.csv
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="the classes of images, rows of tables and time series, as CSV",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("folder", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="file of the kind that was trained on, or a folder of such",
    )
    add_model_options(parser.add_argument_group("model"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--top", type=int, default=1, metavar="K",
        help="the K most probable classes, in columns of their own; default: 1",
    )  # fmt: skip
    output.add_argument("--out", metavar="FILE", help="where the CSV goes; default: shown")


def _run(options: dict[str, Any], arguments: list[str]) -> int:
    if options["top"] < 1:
        raise UserError(f"--top must be at least 1, got {options['top']}")
    out = None if options["out"] is None else Path(options["out"])
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}")
    model = open_model(options)
    if not model.input.takes_files:
        raise UserError(
            f"{options['folder']}: a model of {model.description['input']['kind']}, which has no "
            f"class for a file; cpfast eval {shlex.quote(options['folder'])} --data FILE scores "
            "how well it predicts one"
        )
    top = min(options["top"], len(model.classes))
    failures: list[str] = []
    rows = _rows(model, options["files"], top, failures)
    if out is None:
        _write(sys.stdout, rows, top)
    else:
        text = io.StringIO(newline="")
        _write(text, rows, top)
        write_atomically(out, lambda file: file.write(text.getvalue().encode()))
    return 1 if failures else 0


def _write(file: Any, rows: Iterator[list[str]], top: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    more = [f"{name}_{number}" for number in range(2, top + 1) for name in ("class", "probability")]
    writer.writerow(["file", "class", "probability", *more])
    for row in rows:
        writer.writerow(row)


def _rows(
    model: TrainedModel, files: list[str], top: int, failures: list[str]
) -> Iterator[list[str]]:
    """A row for each sample; what cannot be read is named on stderr, and added to the failures."""
    names: list[str] = []
    samples: list[torch.Tensor] = []

    def predicted() -> Iterator[list[str]]:
        if samples:
            values, places = model.probabilities(torch.cat(samples)).topk(top)
            for name, shares, labels in zip(names, values.tolist(), places.tolist(), strict=True):
                pairs = zip(shares, labels, strict=True)
                found = [
                    x for share, label in pairs for x in (model.classes[label], f"{share:.6f}")
                ]
                yield [name, *found]
        names.clear()
        samples.clear()

    for path in _files(model.input, files, failures):
        try:
            found = model.input.read(path)
        except UserError as error:
            _fail(failures, str(error))
            continue
        # of a file of several samples, each by its number
        own = [str(path)] if len(found) == 1 else [f"{path}:{n + 1}" for n in range(len(found))]
        for start in range(0, len(own), BATCH):
            names += own[start : start + BATCH]
            samples.append(found[start : start + BATCH])
            if len(names) >= BATCH:
                yield from predicted()
    yield from predicted()


def _files(taken: Input, given: list[str], failures: list[str]) -> Iterator[Path]:
    """The files, and those of folders, at any depth, in the order of their names."""
    for name in given:
        if not os.path.isdir(name):
            yield Path(name)
            continue
        found = False
        for folder, inside, files in os.walk(name):
            inside[:] = sorted(one for one in inside if not is_hidden(one))
            for file in sorted(files):
                if taken.is_file(file):
                    found = True
                    yield Path(folder, file)
        if not found:
            _fail(failures, f"{name}: no files in this folder that the model takes")


def _fail(failures: list[str], message: str) -> None:
    failures.append(message)
    print(f"cpfast: error: {message}", file=sys.stderr)
