"""The table of several frontiers, and the page that has it."""

import json
import pathlib

import pytest
from support.toy_comparison import made_up, make_config

from cpfast.studies.frontier import Frontier
from cpfast.studies.frontier.methods import CONTROL
from cpfast.studies.frontier.tuning import FINAL

frontiers = pytest.importorskip("benchmarks.frontiers")
ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*-frontier"))
PARTS = [folder for folder in COMMITTED if folder.name.endswith("-parts-frontier")]
SETS = [folder for folder in COMMITTED if folder not in PARTS]
pytestmark = pytest.mark.needs("scipy")


def write(folder, accuracies):
    """Of methods at budgets, by seed; all cost what the control does."""
    config = make_config(criterion="slope45", at=None, repeats=1, detect=False, schedule="cosine")
    names = tuple(dict.fromkeys(name for name, _ in accuracies if name != CONTROL))
    study = Frontier(config, (0, 1, 2), names, (50, 100), trials=1, control_trials=1, folds=1)
    runs = [
        ({"arm": arm, "budget": budget, "trial": 0, "fold": FINAL, "seed": seed}, value)
        for (arm, budget), values in accuracies.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    results = made_up(study, runs)
    for entry in results["runs"]:
        entry |= {"backward_samples": 10 * entry["budget"], "settings": {}}
        entry |= {"forward_samples": 10 * entry["budget"], "seconds": entry["budget"] / 10}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"format": "cpfast-compare-2", **results}))
    return folder


def test_a_row_a_method_and_a_column_a_set(tmp_path, capsys):
    control = {(CONTROL, 50): [0.50, 0.51, 0.52], (CONTROL, 100): [0.60, 0.61, 0.62]}
    one = write(tmp_path / "one-frontier", {
        **control, ("batch", 50): [0.49, 0.50, 0.51], ("batch", 100): [0.59, 0.60, 0.6101],
        ("infobatch", 100): [0.63, 0.64, 0.6501],
    })  # fmt: skip
    two = write(tmp_path / "two-frontier", {**control, ("batch", 100): [0.61, 0.62, 0.60]})
    frontiers.main([str(one), str(two)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "| method | one | two |",
        "| --- | ---: | ---: |",
        "| infobatch | +3.00 ± 0.01<br>↑ 100 |  |",
        "| batch | -1.00 ± 0.01<br>↓ 50, 100 | +0.00 ± 4.30 |",
    ]
    assert lines[4] == "| seeds | 3 | 3 |"
    assert lines[5].startswith("| visible | 0.0") and lines[7] == frontiers.LEGEND


@pytest.mark.skipif(not COMMITTED, reason="in the repository alone")
@pytest.mark.parametrize("folders", [SETS, PARTS], ids=["sets", "parts"])
def test_the_page_has_the_tables_of_what_is_committed(folders):
    assert frontiers.table(folders) in (ROOT / "docs" / "results.md").read_text("utf-8")
