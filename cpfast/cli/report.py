"""`cpfast report`: the tables and pictures of runs and studies again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpfast.cli.start import can_draw
from cpfast.studies.show import show
from cpfast.studies.store import RESULTS, read_results
from cpfast.train import plots, report
from cpfast.train.errors import UserError
from cpfast.train.files import write_json
from cpfast.train.runfolder import CONFIG, RunFolder

ROTATION_PICTURE = "rotation.png"
SUMMARY = "summary.json"


def add(commands: Any) -> None:
    parser = commands.add_parser("report", help="show the tables and redraw the pictures of runs")
    parser.set_defaults(run=_run)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or a study")
    parser.add_argument(
        "--json", action="store_true", help="of runs: a line of JSON each, as in summary.json"
    )
    parser.add_argument("--no-plot", dest="plot", action="store_const", const=False)


def _run(options: dict[str, Any], arguments: list[str]) -> None:
    if options["json"]:
        for name in options["runs"]:
            print(json.dumps(report.document(report.summarise(RunFolder(Path(name))))))
        return
    plot = options["plot"] is not False and can_draw()
    for number, name in enumerate(options["runs"]):
        if number:
            print()
        path = Path(name)
        if (path / RESULTS).exists():
            print(show(path, read_results(path), plot))
        elif (folder := RunFolder(path)).is_run():
            show_run(folder, plot)
        else:
            raise UserError(f"{path}: no run and no comparison here (no {CONFIG}, no {RESULTS})")


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
    print(report.run_table(summary, picture))
