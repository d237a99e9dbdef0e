import pathlib
import re

import pytest
from support.documents import is_missing

README = pathlib.Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippet_runs_as_it_stands(number, capsys):
    exec(compile(SNIPPETS[number], f"{README}, snippet {number}", "exec"), {})
    assert re.search(
        r"ended after epoch \d+: slope45|ended; [1-9]\d* of 10240 samples were left out"
        r"|losses per sequence \[[67]\.\d+, [67]",
        capsys.readouterr().out,
    )


def test_there_are_snippets_and_the_files_it_points_to_exist():
    assert len(SNIPPETS) >= 1
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    assert [link for link in links if is_missing(README.parent / link)] == []
