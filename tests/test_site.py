"""The site of docs/: what it shows is there, and it is built without a warning."""

import ast
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

import cpfast
from cpfast import detection, ops, pruning, recipes, schedules
from cpfast.studies.compare import arms

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

import generated  # noqa: E402
import measured  # noqa: E402
import methods  # noqa: E402
import repository  # noqa: E402

REFERENCE = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.rst")))
MESSAGES = re.findall(r"^```text\n(.*?)\n```$", (DOCS / "errors.md").read_text(), re.M | re.S)


pages = functools.cache(methods.pages)


# --- what is registered, and what is public -----------------------------------------------------


@pytest.mark.parametrize("kind", methods.KINDS)
def test_every_method_has_a_page_with_its_line_its_source_and_its_use(kind):
    for name, entry in methods.KINDS[kind].items():
        page = pages()[f"{kind}/{name}"]
        assert page.startswith(f"# {name}\n\n{methods.sentence(entry.line)}\n")
        assert f"* - source\n  - {methods.linked(entry.source)}\n" in page
        assert "## Use it" in page


def test_every_method_is_in_the_tables_that_people_wrote():
    for kind, page in (("policies", "policies"), ("criteria", "criteria"), ("actions", "recipes")):
        assert [n for n in methods.KINDS[kind] if not methods.row(page, n)] == []
    assert [n for n in methods.KINDS["criteria"] if not methods.section("criteria", n)] == []


@pytest.mark.parametrize("kind", ["policies", "criteria", "recipes"])
def test_the_line_that_a_page_shows_makes_the_method(kind):
    given = {"dataset": range(10), "labels": torch.arange(10) % 2, "losses": torch.rand(10, 4)}
    for name in methods.KINDS[kind]:
        code = re.search(r"```py\n(.*?)```", pages()[f"{kind}/{name}"], re.DOTALL)[1]
        exec(code, {"cpfast": cpfast, **given})


def test_the_lines_that_an_action_shows_make_it():
    for name in methods.KINDS["actions"]:
        page = pages()[f"actions/{name}"]
        exec(re.search(r"```py\n(.*?)```", page, re.DOTALL)[1], {})
        table = re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1]
        recipes.RecipeFile.parse(table, name, name).make(20)


def test_the_arms_that_a_page_compares_are_there():
    known = arms.known(1)
    for page in pages().values():
        for listed in re.findall(r"--arms (\S+)", page):
            assert [arm for arm in listed.split(",") if arm not in known] == []


PUBLIC = {
    "cpfast": [name for name in cpfast.__all__ if name not in ("ops", "recipes", "schedules")],
    "cpfast.ops": ops.__all__,
    "cpfast.schedules": schedules.__all__,
    "cpfast.detection": detection.__all__,
    "cpfast.pruning": pruning.__all__,
    "cpfast.recipes": recipes.__all__,
}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module):
    shown = set(
        re.findall(r"^\.\. (?:auto\w+|data):: (?:cpfast\.[\w.]*\.)?(\w+)$", REFERENCE, re.M)
    )
    shown |= {entry.factory.__name__ for entry in methods.KINDS["actions"].values()}  # their pages
    if ".. automodule:: cpfast.schedules" in REFERENCE:
        shown |= set(schedules.__all__)
    assert [name for name in PUBLIC[module] if name not in shown] == []


# --- messages -----------------------------------------------------------------------------------


@functools.cache
def templates():
    """All texts of the package, with … where something is filled in."""
    found = []
    for path in sorted((ROOT / "cpfast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                )
    return found


@functools.cache
def kernels():
    """The texts of the ops' checks, one after the other."""
    files = sorted((ROOT / "csrc").rglob("*.h")) + sorted((ROOT / "csrc").rglob("*.cpp"))
    return "".join("".join(re.findall(r'"([^"\n]*)"', path.read_text())) for path in files)


def test_there_are_messages():
    assert len(MESSAGES) > 40


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_quoted_is_one_of_the_package(message):
    parts = [part.strip() for part in " ".join(message.split()).split("…") if part.strip()]
    assert parts
    if message.startswith("cpfast::…"):  # of a kernel, whose checks are made of pieces
        assert [part for part in parts[1:] if part.strip(" ,[]):") not in kernels()] == []
    else:
        assert any(holds(template, parts) for template in templates())


def holds(text, parts):
    """All of them, one after the other."""
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


# --- results ------------------------------------------------------------------------------------


def test_every_folder_of_results_has_a_page_that_says_what_made_it():
    tables = [folder for folder in measured.folders() if (folder / "table.md").exists()]
    assert tables
    for folder in tables:
        assert "Made by" in measured.page(folder), f"{folder.name}: not in the README of results"


def test_numbers_of_a_method_are_those_of_the_results():
    (_, rows) = measured.rows(measured.RESULTS / "digits-methods", {"k1+infobatch"})[0]
    table = (measured.RESULTS / "digits-methods" / "table.md").read_text()
    assert f"| {' | '.join(rows[0])} |" in table
    assert "`k1+infobatch`" in methods.numbers("policies", "infobatch")


def test_a_criterion_shows_what_it_does_on_random_labels():
    shown = methods.numbers("criteria", "slope45")
    assert "## On true and on random labels" in shown
    table = (measured.RESULTS / "digits-criteria" / "table.md").read_text()
    assert re.search(r"^\| slope45 \|.*$", shown, re.M)[0] in table
    assert "random labels" not in methods.numbers("policies", "infobatch")


def test_without_a_study_of_frontiers_there_is_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert measured.frontier("infobatch") == []


@pytest.mark.parametrize(
    ("kind", "name", "methods_of_it"),
    [
        ("policies", "infobatch", ["infobatch", "batch+infobatch"]),
        ("actions", "batch", ["batch+infobatch"]),
        ("criteria", "slope45", ["detector"]),
        ("criteria", "fisher", ["detector:fisher"]),
    ],
)
def test_a_study_of_frontiers_has_a_place_on_each_page(
    kind, name, methods_of_it, tmp_path, monkeypatch
):
    (tmp_path / "digits-frontier").mkdir()
    (tmp_path / "digits-frontier" / "results.json").touch()
    header = ("budget %", "method", "accuracy %", "p (Holm)")
    named = ["control", "infobatch", "batch+infobatch", "detector", "detector:fisher"]
    rows = [["40", method, "98.00 ± 0.10", "0.2"] for method in named]
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "tables", lambda folder: [(header, rows)])
    shown = methods.numbers(kind, name)
    assert re.findall(r"^\| 40 \| (\S+) \|", shown, re.M) == methods_of_it
    assert "(/measured/digits-frontier.md)" in shown


def test_the_front_page_has_the_numbers_of_the_results():
    results = json.loads((measured.RESULTS / "digits-compare" / "results.json").read_text())
    assert len(results["seeds"]) == 40  # which the page's prose relies on
    table = measured.arms(measured.RESULTS / "digits-compare", ["full", "detector", "k1"])
    assert "| `detector` | 97.87 ± 0.11 | -0.25 ± 0.14 | 61.5 ± 0.7 |" in table


# --- links --------------------------------------------------------------------------------------


def test_links_out_of_the_folder_go_to_pages_of_the_site():
    page = DOCS / "results.md"
    text = "[a](../benchmarks/results/digits-compare/table.md) [b](../CHANGELOG.md#unreleased)"
    assert repository.rewritten(text, page) == (
        "[a](/measured/digits-compare.md) [b](/changelog.md#unreleased)"
    )
    assert repository.rewritten("[a](../cpfast/recipes)", page) == "[a](/sources/cpfast/recipes.md)"
    assert repository.rewritten("[a](../benchmarks/results/digits-compare/results.json)", page) == (
        "[a](/../benchmarks/results/digits-compare/results.json)"
    )


@pytest.mark.parametrize(
    "kept", ["[a](https://b.c)", "[a](#b)", "```\n[a](../CHANGELOG.md)\n```\n"]
)
def test_other_links_and_code_stay(kept):
    assert repository.rewritten(kept, DOCS / "results.md") == kept


# --- the build ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, out],
        capture_output=True, text=True, env=env, cwd=out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def of_the_build(test):
    for mark in (pytest.mark.slow, pytest.mark.needs("sphinx"), pytest.mark.needs("myst_nb")):
        test = mark(test)
    return test


@of_the_build
@pytest.mark.parametrize(
    "fetched",
    [r'<(script|img)[^>]+src="https?:', r'<link[^>]+href="https?:', r"@import|url\(https?:"],
)
def test_nothing_is_fetched_when_a_page_is_read(site, fetched):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    assert [page.name for page in pages if re.search(fetched, page.read_text())] == []


@of_the_build
@pytest.mark.parametrize("page", ["quickstart", "concepts/layer-rotation", "concepts/pruning"])
def test_a_page_that_runs_shows_what_came_out(site, page):
    assert '<div class="cell_output' in (site / f"{page}.html").read_text()


def test_generated_pages_are_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text()
    assert [f for f in (*generated.FOLDERS, "_build") if f"docs/{f}/" not in ignored] == []
