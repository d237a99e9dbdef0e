"""The snippets of docs/ run as they stand, each in a process of its own: they register names."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from support.documents import is_missing

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = {
    page.relative_to(DOCS).as_posix(): page.read_text()
    for page in sorted([*DOCS.glob("*.md"), *DOCS.glob("concepts/*.md")])
}
PRINTED = {
    "accelerate.md": ["0.7 of the samples of 20 full epochs"],
    "concepts/recipes.md": [
        "epoch 2: 3 passes, pruned: False\n"
        "epoch 8: 1 passes, pruned: True\n"
        "epoch 19: 1 passes, pruned: True"
    ],
    "data.md": ["(200, 4) (200,) (100, 4) (100,)"],
    "distributed.md": ["loaded ['detector', 'pruner', 'rotation']"],
    "layca.md": ["0.weight turned by 0.020 in one step, its norm is what it was: True"],
    "loss.md": [
        "8 sequences scored: True",
        "64 of 256 tokens",
        "64 samples scored, 64 margins",
    ],
    "lightning.md": ["8 epochs measured, some samples left out: True"],
    "own-loop.md": ["0.7 of the samples of 20 full epochs", "0.000\n0.373\n0.235\n0.071"],
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
# Pages that run when the site is built, of which one cell goes on where the last one ended.
RUN = {
    "concepts/layer-rotation.md": [
        "T =  25   true labels: after epoch",
        "random labels: after epoch",
    ],
    "concepts/pruning.md": ["epoch 3: ", "6 (x1), 7 (x1)", "loss of all samples:       7.10"],
    "quickstart.md": ["test accuracy", "ended after epoch", "samples were left out"],
}
NEEDS = {
    "accelerate.md": ["accelerate"],
    "lightning.md": ["lightning"],
    "transformers.md": ["transformers", "accelerate"],
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


SNIPPETS = [
    pytest.param(
        page,
        number,
        code,
        PRINTED[page][number],
        marks=[pytest.mark.needs(name) for name in NEEDS.get(page, [])],
    )
    for page in PRINTED
    for number, code in enumerate(blocks(page, "python"))
]


def run(code):
    env = {**os.environ, "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env
    )


@pytest.mark.parametrize(
    ("page", "number", "code", "printed"),
    SNIPPETS,
)
def test_a_snippet_prints_what_it_says(page, number, code, printed):
    done = run(code)
    assert done.returncode == 0, f"{page}, snippet {number}:\n{done.stderr}"
    lines, expected = done.stdout.strip().splitlines(), printed.splitlines()
    if page in NEEDS:  # a trainer's log goes before it
        lines = lines[-len(expected) :]
    assert lines == expected


@pytest.mark.parametrize("page", RUN)
def test_the_cells_of_a_page_run_one_after_the_other(page):
    done = run("".join(blocks(page, r"\{code-cell\} ipython3(?:\n:tags:[^\n]*)?")))
    assert done.returncode == 0, f"{page}:\n{done.stderr}"
    assert [part for part in RUN[page] if part not in done.stdout] == []


def test_every_page_is_read_and_the_files_it_points_to_exist():
    assert {page for page in PAGES if blocks(page, "python")} == set(PRINTED)
    assert {page for page in PAGES if "{code-cell}" in PAGES[page]} == set(RUN)
    for page, text in PAGES.items():
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
        links = [link for link in links if link and "://" not in link]
        missing = [link for link in links if is_missing((DOCS / page).parent / link)]
        # Those from the root of docs/ go to pages that are made for the site.
        assert [link for link in missing if not link.startswith("/")] == []
