"""`cpfast report`: the tables and pictures of runs and studies again."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from cpfast.cli.start import can_draw
from cpfast.studies.show import show
from cpfast.studies.store import RESULTS, read_results
from cpfast.train import inputs, overview, plots, report, saved
from cpfast.train.errors import UserError
from cpfast.train.files import write_json
from cpfast.train.runfolder import CONFIG, RunFolder

ROTATION_PICTURE = "rotation.png"
SUMMARY = "summary.json"


EXAMPLES = """\
examples:
  cpfast report runs/digits-cnn-fast-1
  cpfast report runs/digits-*
  cpfast report runs/digits-* --csv > runs.csv
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="the tables and pictures of runs and studies again; of several runs one table",
        description="Show the table of a run, comparison or study again, and redraw its pictures;\n"
        "of several runs, one table with a row for each.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or a study")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="of runs: a line of JSON each, as in summary.json"
    )
    form.add_argument("--csv", action="store_true", help="of runs: the table as CSV")
    parser.add_argument(
        "--no-plot", dest="plot", action="store_const", const=False, help="draw no pictures"
    )


def _run(options: dict[str, Any], arguments: list[str]) -> None:
    paths = [Path(name) for name in options["runs"]]
    if options["json"]:
        for run in [_opened(path) for path in paths]:
            print(json.dumps({"run": run.name, **report.document(run.summary)}))
        return
    if options["csv"]:
        print(overview.as_csv([_opened(path) for path in paths]), end="")
        return
    plot = options["plot"] is not False and can_draw()
    studied = [path for path in paths if (path / RESULTS).exists()]
    runs = [path for path in paths if path not in studied]
    for path in runs:
        if not RunFolder(path).is_run():
            raise UserError(f"{path}: no run and no comparison here (no {CONFIG}, no {RESULTS})")
    for number, path in enumerate(studied):
        print("\n" * (number > 0) + show(path, read_results(path), plot))
    if studied and runs:
        print()
    if len(runs) == 1:
        show_run(RunFolder(runs[0]), plot)
    elif runs:
        print(overview.table([_opened(path) for path in runs]))


def _opened(path: Path) -> overview.Run:
    folder = RunFolder(path)
    summary = report.summarise(folder)
    return overview.Run(str(path), summary, saved.fingerprint(path))


def show_run(folder: RunFolder, plot: bool, *, keep: bool = False) -> None:
    """
    Args:
        keep: whether summary.json is written too.
    """
    summary = report.summarise(folder)
    picture = None
    if plot:
        picture = folder.path / ROTATION_PICTURE
        plots.draw_run(summary, picture)
    if keep:
        write_json(folder.path / SUMMARY, report.document(summary))
    print(report.run_table(summary, picture, _model(folder.path)))


def _model(path: Path) -> str | None:
    """Where that of a finished run is, and how it is used."""
    file = path / saved.LAST
    if not file.exists() or not (path / saved.DESCRIPTION).exists():
        return None
    kind = saved.describe(path)["input"]["kind"]
    taken: Any = inputs.inputs[kind].factory
    use = "predict" if taken.takes_files else "eval"
    files = " FILES" if use == "predict" else ""
    return f"{file}; to use it: cpfast {use} {shlex.quote(str(path))}{files}"
