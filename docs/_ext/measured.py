"""A page for each folder of benchmarks/results that has a table, and what was measured of a method.

Both are read from the folders, so that a number stands nowhere else.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable

import generated
import repository
from generated import ROOT

RESULTS = ROOT / "benchmarks" / "results"
ARMS = re.compile(r"^```\{arms\} (\S+) (.+)\n```$", re.MULTILINE)
OPS = re.compile(r"^```\{ops\} (\S+)\n```$", re.MULTILINE)
OURS = ("cpfast", "twin")
SHOWN = {
    "arm": "arm",
    "accuracy %": "accuracy, %",
    "to full": "to full, points",
    "saved %": "time saved, %",
}
EQUAL_TIME = "digits-methods"
FRONTIER = "*frontier*"
CRITERIA = "*-criteria"
OUTCOMES = ("accuracy", "random: fired")


def folders(pattern: str = "*") -> list[pathlib.Path]:
    """Those of a study's results, by name."""
    return sorted(p.parent for p in RESULTS.glob(f"{pattern}/results.json"))


@functools.cache
def tables(folder: pathlib.Path) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """The header and the rows of each table that the study makes of its results."""
    from cpfast.studies import document, read_results

    made = document(read_results(folder))
    return [(tuple(t.header), [list(row) for row in t.rows]) for t in made.tables]


def rows(folder: pathlib.Path, names: set[str]) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Of each table of outcomes that has any, the rows of arms of these names."""
    return _rows(folder, lambda arm: arm in names)


def _rows(
    folder: pathlib.Path, is_wanted: Callable[[str], bool]
) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    found = []
    for header, body in tables(folder):
        named = header.index("method") if "method" in header else 0
        mine = [row for row in body if is_wanted(row[named])]
        if mine and any(name.startswith(OUTCOMES) for name in header):
            found.append((header, mine))
    return found


def labels(criterion: str) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """The folder, the header and the row of a criterion in each study of criteria, on true and on
    random labels."""
    return [
        (folder.name, *found) for folder in folders(CRITERIA) for found in rows(folder, {criterion})
    ]


def frontier(part: str) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """The folder, the header and the rows of the methods that a part is in, alone or with others,
    in each study of frontiers; nothing where none has been run."""
    found = []
    for folder in folders(FRONTIER):
        having = _rows(folder, lambda method: part in method.split("+"))
        found += [(folder.name, header, body) for header, body in having]
    return found


def arms(folder: pathlib.Path, names: list[str]) -> str:
    """A table of some arms of a comparison, in that order, with what matters most."""
    header, body = tables(folder)[0]
    columns = [header.index(name) for name in SHOWN]
    found = {row[0]: [row[column] for column in columns] for row in body}
    return generated.table(
        list(SHOWN.values()),
        [[f"`{name}`", *found[name][1:]] for name in names],
        len(SHOWN) - 1,
    )


def ops(file: pathlib.Path) -> str:
    """Of each case of each op: cpfast's time, and the fastest of the others."""
    cases: dict[tuple[str, str], list[dict]] = {}
    for record in json.loads(file.read_text("utf-8"))["benchmarks"]:
        about = record["extra_info"]
        if not about["op"].startswith(("growth", "training")):
            cases.setdefault((about["op"], about["case"]), []).append(record)
    found, before = [], ""
    for (op, case), records in sorted(cases.items(), key=lambda item: item[0][0]):
        own = next(r for r in records if r["extra_info"]["contender"] == "cpfast")
        others = [r for r in records if not r["extra_info"]["contender"].startswith(OURS)]
        fastest = min(others, key=lambda r: r["extra_info"]["ratio"][1])["extra_info"]
        time, ratio = _seconds(own["stats"]["median"]), f"{fastest['ratio'][1]:.3g}"
        found.append(["" if op == before else f"`{op}`", case, fastest["contender"], time, ratio])
        before = op
    return generated.table(["op", "case", "fastest other", "cpfast", "ratio"], found, 2)


def _seconds(value: float) -> str:
    unit, scale = next(u for u in (("s", 1), ("ms", 1e-3), ("us", 1e-6)) if value >= u[1])
    return f"{value / scale:.3g} {unit}"


@functools.cache
def described() -> dict[str, list[str]]:
    """What benchmarks/results/README.md says of each folder: what it is, and what made it. The
    machine stands in the study's own notes."""
    cells = re.findall(
        r"^\| `([^`]+)/` \| (.*?) \| (.*?) \| .*? \|$",
        (RESULTS / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    readme = RESULTS / "README.md"
    return {name: [repository.rewritten(cell, readme) for cell in rest] for name, *rest in cells}


def page(folder: pathlib.Path) -> str:
    title, _, body = (folder / "table.md").read_text("utf-8").partition("\n")
    parts = [f"# {folder.name}\n", f"{title.removeprefix('# ')}.\n"]
    if folder.name in described():
        what, made_by = described()[folder.name]
        parts.append(f"{what[0].upper()}{what[1:]}. Made by {made_by}.\n")
    parts.append(repository.rewritten(body, folder / "table.md"))
    parts.append(f"[Raw numbers](/../benchmarks/results/{folder.name}/results.json).\n")
    return "\n".join(parts)


def _prepare(app) -> None:
    having = [folder for folder in folders() if (folder / "table.md").exists()]
    generated.write("measured", {folder.name: page(folder) for folder in having})


def _read(app, docname: str, source: list[str]) -> None:
    source[0] = ARMS.sub(lambda match: arms(RESULTS / match[1], match[2].split()), source[0])
    source[0] = OPS.sub(lambda match: ops(RESULTS / f"{match[1]}.json"), source[0])


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", _prepare)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
