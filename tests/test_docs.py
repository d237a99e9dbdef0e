"""The snippets of docs/ run as they stand, each in a process of its own: they register names."""

import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PRINTED = {
    "accelerate.md": ["0.7 of the samples of 20 full epochs"],
    "data.md": ["(200, 4) (200,) (100, 4) (100,)"],
    "distributed.md": ["loaded ['detector', 'pruner', 'rotation']"],
    "layca.md": ["0.weight turned by 0.020 in one step, its norm is what it was: True"],
    "loss.md": [
        "8 sequences scored: True",
        "64 of 256 tokens",
        "64 samples scored, 64 margins",
    ],
    "lightning.md": ["8 epochs measured, some samples left out: True"],
    "recipes.md": ["3 0.0\n1 0.1\n1 0.2"],
    "criteria.md": ["5 epochs, 32 samples each"],
    "extending.md": [
        "30 of 100 samples",
        "[False, False, True, False]",
        "3 1.0\n1 0.5",
    ],
    "model.md": [
        "logits [2, 10], of classes 0 to 9",
        "exported, the logits of 7 images are the same: True",
    ],
    "transformers.md": ["4 epochs measured, some samples left out: True"],
}
NEEDS = {
    "accelerate.md": ["accelerate"],
    "lightning.md": ["lightning"],
    "transformers.md": ["transformers", "accelerate"],
}
SNIPPETS = [
    pytest.param(
        page,
        number,
        code,
        PRINTED[page][number],
        marks=[pytest.mark.needs(name) for name in NEEDS.get(page, [])],
    )
    for page in PRINTED
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize(
    ("page", "number", "code", "printed"),
    SNIPPETS,
)
def test_a_snippet_prints_what_it_says(page, number, code, printed):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{page}, snippet {number}:\n{done.stderr}"
    lines, expected = done.stdout.strip().splitlines(), printed.splitlines()
    if page in NEEDS:  # a trainer's log goes before it
        lines = lines[-len(expected) :]
    assert lines == expected


def test_every_page_is_read_and_the_files_it_points_to_exist():
    pages = sorted(DOCS.glob("*.md"))
    with_code = {p.name for p in pages if "```python" in p.read_text()}
    assert with_code == set(PRINTED)
    for page in pages:
        links = re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == []
