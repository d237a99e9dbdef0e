"""A page for each policy, criterion, action and recipe, and a table of everything that has a name.

A page is made of what is registered (line, source, options), of the docstring, of what the pages
that people wrote say of the method by its name, and of what was measured.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import generated
import measured
import repository
from generated import DOCS, ROOT, table

from cpfast.detection import criteria
from cpfast.pruning import policies
from cpfast.recipes import ALWAYS, actions, recipes
from cpfast.recipes.file import tomllib
from cpfast.registry import Entry, Registry

KINDS: dict[str, Registry[Any]] = {
    "policies": policies,
    "criteria": criteria,
    "actions": actions,
    "recipes": recipes,
}
SINGULAR = {"policy": "policies", "criterion": "criteria", "action": "actions"}
ARMS = {"random": "rs2", "slope45": "detector", "prune": "infobatch"}  # whose arm has another name
ARMS |= {"detector+prune": "detector+infobatch"}
CONTEXT = ("full", "k1")  # shown beside a method's own arms
PARENTS = {  # the page that has a folder's pages below it
    "policies": "methods/policies/*",
    "criteria": "methods/criteria/*",
    "recipes": "methods/actions/index\n/methods/recipes/*",
    "methods/actions/index": "methods/actions/*",
    "result-files": "measured/*",
}
NEEDED = {"fixed": {"at": 20}}  # options without a default
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
ARXIV = re.compile(r"(?<![\d.])(\d{4}\.\d{5})(?!\d)")


def linked(source: str) -> str:
    """With the papers' addresses."""
    text = re.sub(r"arXiv (?=\d)", "", source) if source.startswith("arXiv") else source
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text.replace("arXiv ", ""))


def sentence(line: str) -> str:
    return line if line.endswith(".") else f"{line}."


def option_rows(factory: Callable[..., Any], without: tuple[str, ...] = ()) -> list[list[str]]:
    rows = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in without or parameter.kind in VARIABLE:
            continue
        default = f"`{parameter.default!r}`"
        if parameter.default is inspect.Parameter.empty:
            default = "needed"
        elif parameter.default == ALWAYS:
            default = "the whole training"
        rows.append([f"`{name}`", default])
    return rows


# --- what people wrote --------------------------------------------------------------------------


@functools.cache
def _text(page: str) -> str:
    path = DOCS / f"{page}.md"
    return repository.rewritten(path.read_text("utf-8"), path)


def section(page: str, heading: str) -> str:
    """The text below a heading of the second level; "" where there is none."""
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", _text(page), re.MULTILINE | re.DOTALL
    )
    return _at_home(found[1].strip(), page) if found else ""


def bullets(page: str, name: str) -> str:
    """The items of lists that speak of a method by its name, in code, first of all."""
    found = re.findall(r"^- .*$", _text(page), re.MULTILINE)
    mine = [line for line in found if f"`{name}`" in _subject(line)]
    return _at_home("\n".join(mine), page)


def _subject(line: str) -> str:
    """What an item begins with: up to the first word that is no name and no list of names."""
    return re.match(r"- ((?:`[^`]+`(?:, | and |,? )?)*)", line)[1]


def row(page: str, name: str) -> dict[str, str]:
    """The cells of the first table row that is about a method, by their column."""
    header: list[str] = []
    for line in _text(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif f"`{name}`" in cells[0] or f"[{name}]" in cells[0]:
            return dict(zip(header, cells, strict=True))
    return {}


def _at_home(text: str, page: str) -> str:
    """Links to the page's own headings, from elsewhere."""
    return re.sub(r"\[(?:below|above)\]\(#", "[here](#", text).replace("](#", f"](/{page}.md#")


# --- pages --------------------------------------------------------------------------------------


def arms_of(kind: str, name: str) -> set[str]:
    arm = ARMS.get(name, name)
    if kind == "criteria":
        return {"detector" if name == "slope45" else f"detector:{name}", name} - {"detector:fixed"}
    if kind == "policies":
        return {arm, f"k1+{arm}", f"detector+{arm}"}
    return {arm, f"k1+{arm}"} if kind == "recipes" else set()


# What a study of frontiers calls them. Recipes that act at the end of the period are none of its
# parts, which act at a share of the training.
PARTS = {
    ("actions", "augment"): "early-augment", ("actions", "weight_decay"): "early-decay",
    ("actions", "repeats"): "detector", ("recipes", "growing-batch"): "batch",
    ("recipes", "growing-length"): "length", ("recipes", "growing-resolution"): "resolution",
    ("recipes", "early-augment"): "", ("recipes", "early-decay"): "",
    ("recipes", "clean-finish"): "early-augment",
}  # fmt: skip


def part_of(kind: str, name: str) -> str:
    """What a study of frontiers calls it; empty where it has none."""
    if kind == "criteria":
        return "detector" if name == "slope45" else f"detector:{name}"
    return PARTS.get((kind, name), name)


def numbers(kind: str, name: str) -> str:
    """What was measured of the method's arms: at equal time, and on frontiers where there are."""
    own, parts = arms_of(kind, name), []
    for folder in measured.folders(measured.EQUAL_TIME):
        for header, mine in measured.rows(folder, own):
            beside = dict(measured.rows(folder, set(CONTEXT) - own))[header]
            shown = [*beside, *mine]
            parts.append(
                "## Measured\n\n"
                f"From [{folder.name}](/measured/{folder.name}.md), which says how, on what, and "
                "what the columns are; `full` and `k1` stand beside it. One small data set shows "
                "the mechanism, not what the method is worth on yours.\n\n"
                + table(header, [[f"`{r[0]}`", *r[1:]] for r in shown], len(header) - 1)
            )
    for folder, header, mine in measured.labels(name) if kind == "criteria" else []:
        parts.append(
            "## On true and on random labels\n\nWhat has no answer to learn should not end the "
            f"period of learning; from [{folder}](/measured/{folder}.md), which says what the "
            "columns are.\n\n" + table(header, mine, len(header) - 1)
        )
    for folder, header, mine in measured.frontier(part_of(kind, name)):
        parts.append(
            f"## On the frontier of {folder.removesuffix('-frontier')}\n\n"
            "Against ordinary training that is tuned as well, at equal cost "
            f"([how](/studies.md#the-frontier)); from [{folder}](/measured/{folder}.md).\n\n"
            + table(header, mine, len(header) - 2)
        )
    return "\n".join(parts)


def _documented(factory: Any) -> str:
    kind = "autoclass" if inspect.isclass(factory) else "autofunction"
    return (
        "```{eval-rst}\n"
        f".. {kind}:: {factory.__module__}.{factory.__qualname__}\n   :no-index-entry:\n```\n"
    )


def policy_page(entry: Entry[Any]) -> str:
    name, rule = entry.name, entry.factory
    cells = row("policies", name)
    facts = [
        ["source", linked(entry.source)],
        ["keeps", cells.get("keeps", "")],
        ["looks at", cells.get("looks at", "")],
        ["remembers of a sample", cells.get("remembers a sample", "") or "nothing"],
        ["unbiased: the expected weighted loss of a pass is that of all samples", _unbiased(rule)],
        ["share kept (`keep`) where nothing is said", f"{rule.keep:g}"],
        ["time of a plan, in `infobatch`'s", cells.get("plan", "") or "not measured"],
    ]
    needs, data, reference = "", "", ""
    if rule.needs_labels:
        needs = ", labels=labels"
    if rule.needs_tokens:
        needs, data = ", reference=losses", " --data all.txt"
        reference = " --reference all.safetensors"
    arm = ARMS.get(name, name)
    return _page(
        entry,
        facts,
        "## Use it\n\nIn a loop or a trainer of your own:\n\n"
        "```py\n"
        f'pruner = cpfast.DataPruner(len(dataset), num_epochs=200, policy="{name}"{needs})\n'
        "```\n\nOn the command line, and against the controls that tell what it is worth:\n\n"
        "```sh\n"
        f"cpfast train{data} --method prune --policy {name}{reference}\n"
        f"cpfast compare{data} --arms full,k1,k1_matched,k1+{arm}\n```\n",
        _below("What to know", bullets("policies", name)),
        _options(rule, needs),
        numbers("policies", name),
        "## Reference\n\n" + _documented(rule),
    )  # fmt: skip


def _unbiased(rule: Any) -> str:
    if rule.unbiased:
        return "yes"
    return "without a cap" if "cap" in inspect.signature(rule).parameters else "no"


def criterion_page(entry: Entry[Any]) -> str:
    name, cells = entry.name, row("criteria", entry.name)
    facts = [
        ["source", linked(entry.source)],
        ["looks at", cells.get("looks at", "")],
        ["costs", cells.get("costs", "")],
    ]
    given = "".join(f", {option}={value}" for option, value in NEEDED.get(name, {}).items())
    flags = "".join(f" --{option} {value}" for option, value in NEEDED.get(name, {}).items())
    arms = {"slope45": "detector", "fixed": "fixed"}.get(name, f"detector:{name}")
    return _page(
        entry,
        facts,
        "## Use it\n\nIn a loop or a trainer of your own:\n\n"
        "```py\n"
        f'detector = cpfast.CriticalPeriodDetector("{name}", total_epochs=200{given})\n'
        "```\n\nOn the command line, and against the controls that tell what it is worth:\n\n"
        "```sh\n"
        f"cpfast train --criterion {name}{flags}\n"
        f"cpfast compare --arms full,k1,k1_matched,{arms}\n```\n",
        _below("How it decides, and what is known of it", section("criteria", name)),
        _options(entry.factory),
        numbers("criteria", name),
        "## Reference\n\n" + _documented(entry.factory),
    )


def action_page(entry: Entry[Any]) -> str:
    name, factory = entry.name, entry.factory
    of_it = [n for n, e in recipes.items() if name in _actions_of(n)]
    facts = [
        ["source", linked(entry.source)],
        ["recipes that have it", ", ".join(f"[`{n}`](/methods/recipes/{n}.md)" for n in of_it)],
    ]
    return _page(
        entry,
        facts,
        "## Use it\n\nIn Python, and in a recipe's file; here once the critical period has ended:\n"
        "\n```py\n"
        f"from cpfast import Recipe, Window\nfrom cpfast.recipes import {factory.__name__}\n\n"
        f'recipe = Recipe(200, [{factory.__name__}(window=Window("after"))])\n'
        "```\n\n"
        f'```toml\n[[actions]]\naction = "{name}"\nwindow = {{ phase = "after" }}\n```\n\n'
        "Windows, and files as a whole: [recipes](/recipes.md).\n",
        _below("What to know", bullets("recipes", name)),
        _options(factory),
        numbers("actions", name),
        "## Reference\n\n" + _documented(factory),
    )


def _actions_of(name: str) -> set[str]:
    """Of a recipe that has a file."""
    path = ROOT / "cpfast" / "recipes" / f"{name}.toml"
    if not path.exists():
        return set()
    return set(re.findall(r'^action = "([^"]+)"', path.read_text("utf-8"), re.MULTILINE))


def recipe_page(entry: Entry[Any]) -> str:
    name = entry.name
    path = f"cpfast/recipes/{name}.toml"
    options = tomllib.loads((ROOT / path).read_text("utf-8")).get("options", {})
    described = [
        [f"`{option}`", f"`{about['default']}`" if "default" in about else "", about["help"]]
        for option, about in options.items()
    ]
    used = ", ".join(f"[`{n}`](/methods/actions/{n}.md)" for n in sorted(_actions_of(name)))
    facts = [["source", linked(entry.source)], ["actions", used]]
    return _page(
        entry,
        facts,
        "## Use it\n\nIn a loop or a trainer of your own:\n\n"
        "```py\n"
        f'recipe = cpfast.Recipe.named("{name}", total_epochs=200)\n'
        "```\n\nOn the command line, and against the controls that tell what it is worth:\n\n"
        "```sh\n"
        f"cpfast train --method {name}\n"
        f"cpfast compare --arms {_compared(name)}\n```\n",
        _below("What to know", bullets("recipes", name)),
        _below("Options", table(["option", "default", "what it is"], described)),
        numbers("recipes", name),
        "## The file\n\nCopy it, change it, and give it as `--recipe FILE` "
        f"([how](/recipes.md#as-a-file)).\n\n```{{literalinclude}} /../{path}\n"
        ":language: toml\n```\n",
    )


def _compared(name: str) -> str:
    arm = ARMS.get(name, name)
    named = ["full", "k1", "k1_matched"]
    if name != "full":
        named.append(arm)
    if name not in ("full", "detector", "prune", "detector+prune"):
        named.append(f"k1+{arm}")
    return ",".join(named)


def _below(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}\n" if text else ""


def _options(factory: Callable[..., Any], without: str = "") -> str:
    rows = option_rows(factory, tuple(re.findall(r"\w+", without)))
    return _below("Options", table(["option", "default"], rows)) if rows else ""


def _page(entry: Entry[Any], facts: list[list[str]], *parts: Any) -> str:
    rows = "".join(f"* - {name}\n  - {text}\n" for name, text in facts if text)
    shown = f"```{{list-table}}\n:widths: 30 70\n\n{rows}```\n"
    head = [f"# {entry.name}\n", f"{sentence(entry.line)}\n", shown]
    return "\n".join([*head, *(part for part in parts if part)])


PAGES: Mapping[str, Callable[[Entry[Any]], str]] = {
    "policies": policy_page,
    "criteria": criterion_page,
    "actions": action_page,
    "recipes": recipe_page,
}


def pages() -> dict[str, str]:
    made = {
        f"{kind}/{name}": PAGES[kind](entry)
        for kind, registry in KINDS.items()
        for name, entry in registry.items()
    }
    return {**made, "actions/index": actions_page(), "names": names_page()}


def actions_page() -> str:
    rows = [
        [f"[`{name}`](/methods/actions/{name}.md)", sentence(entry.line), linked(entry.source)]
        for name, entry in actions.items()
    ]
    return (
        "# Actions\n\nWhat a [recipe](/recipes.md) is made of: each changes one thing that an "
        "epoch spends, in its window of epochs.\n\n"
        + table(["action", "what it does", "source"], rows)
    )


def names_page() -> str:
    """As `cpfast list` prints it."""
    from cpfast.cli.list import KINDS as ALL

    parts = [
        "# Everything that has a name\n",
        "What `cpfast list` prints: what options and functions take by name, each with a line and "
        "its source. A package of yours adds to it ([how](/extending.md)).\n",
    ]
    for kind, registry in ALL.items():
        rows = [
            [
                f"[`{name}`](/methods/{kind}/{name}.md)" if kind in KINDS else f"`{name}`",
                sentence(entry.line).replace("|", "\\|").replace("<", "\\<"),
                linked(entry.source).replace("<", "\\<"),
            ]
            for name, entry in registry.items()
        ]
        parts += [f"## {kind.capitalize()}\n", table(["name", "what it is", "source"], rows)]
    return "\n".join(parts)


def _prepare(app) -> None:
    generated.write("methods", pages())


def _read(app, docname: str, source: list[str]) -> None:
    """The pages below a page, and links to them from the first column of its tables."""
    if docname in PARENTS:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n/{PARENTS[docname]}\n```\n"
    if docname in KINDS:
        source[0] = with_links(source[0])


def with_links(text: str) -> str:
    """Of tables whose header begins with policy, criterion or action, the names in the first column
    go to the method's page."""
    lines, kind = [], ""
    for line in text.splitlines(keepends=True):
        head, bar, rest = line[1:].partition("|")
        if not line.startswith("|"):
            kind = ""
        elif head.strip() in SINGULAR:
            kind = SINGULAR[head.strip()]
        elif kind:
            named = re.sub(
                r"`([^`]+)`|\[([^]]+)\]\(#[^)]*\)",
                lambda match, kind=kind: _linked_name(kind, match),
                head,
            )
            line = f"|{named}{bar}{rest}"
        lines.append(line)
    return "".join(lines)


def _linked_name(kind: str, match: re.Match[str]) -> str:
    name = match[1] or match[2]
    return f"[`{name}`](/methods/{kind}/{name}.md)" if name in KINDS[kind] else match[0]


def _sign(app, what: str, name: str, it: Any, options: Any, signature: str | None, returns: Any):
    """A class without arguments of its own has those that say nothing, as a Protocol does."""
    return ("", returns) if signature == "(*args, **kwargs)" else None


def setup(app) -> dict[str, bool]:
    app.connect("autodoc-process-signature", _sign)
    app.connect("builder-inited", _prepare)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
