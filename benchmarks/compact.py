"""Rewrites the results of studies without their curves, a run a line: for committing.

python -m benchmarks.compact FOLDER...

Tables are made from what stays; draw the pictures before (`cpfast report FOLDER`), for they need
the curves.
"""

import json
import pathlib
import sys

from cpfast.studies.store import RESULTS, read_results, without_curves


def compact(folder: pathlib.Path) -> None:
    results = without_curves(read_results(folder))
    runs = results.pop("runs")
    head = json.dumps(results)[:-1]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in runs)
    (folder / RESULTS).write_text(f'{head}, "runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    for name in sys.argv[1:]:
        compact(pathlib.Path(name))
