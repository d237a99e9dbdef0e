"""What is committed under benchmarks/results can be read, and makes the tables beside it."""

import pathlib
import shutil

import pytest

from cpfast import cli
from cpfast.studies.store import has_curves, read_results

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="in the repository alone")
FOLDERS = sorted(path.parent.name for path in RESULTS.glob("*/results.json"))


def test_there_are_results_and_they_are_small():
    assert len(FOLDERS) >= 6
    assert sum(path.stat().st_size for path in RESULTS.rglob("*.json")) < 6_000_000


@pytest.mark.needs("scipy")
@pytest.mark.parametrize("name", FOLDERS)
def test_the_table_follows_from_the_results(name, tmp_path, capsys):
    copied = tmp_path / name
    shutil.copytree(RESULTS / name, copied)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert not has_curves(read_results(copied))
    assert cli.main(["report", str(copied)]) == 0
    after = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert after == before  # the pictures too, which cannot be drawn again
    assert f"{copied}/table.md" in capsys.readouterr().out
