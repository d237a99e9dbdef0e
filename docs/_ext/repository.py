"""Links from pages to the repository, which on GitHub are paths.

On the site such a link goes to the page that includes the file, to the page of a folder of results,
or to one that shows the text. Pictures and data keep their path, and Sphinx copies them. Sources
are rewritten as they are read: the files stay what GitHub shows.
"""

import functools
import pathlib
import re

import generated
from generated import DOCS, ROOT

LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
FENCE = re.compile(r"^ *(`{3,})")
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
COPIED = (".json", ".jsonl", ".png")
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".h": "cpp"}
LANGUAGES |= {".cpp": "cpp", ".cu": "cpp"}


@functools.cache
def written() -> list[pathlib.Path]:
    """The pages that people wrote."""
    pages = [p for p in DOCS.rglob("*.md") if not p.name.startswith("_")]
    made = {*generated.FOLDERS, "_build"}
    return sorted(p for p in pages if p.relative_to(DOCS).parts[0] not in made)


@functools.cache
def included() -> dict[str, str]:
    """By the path of a file in the repository, the page that includes it."""
    pages = {"README.md": "index", "examples": "examples"}
    for page in written():
        for path in INCLUDE.findall(page.read_text("utf-8")):
            pages[_named((page.parent / path).resolve())] = _named(page, DOCS).removesuffix(".md")
    return pages


def links(text: str) -> list[str]:
    """Those to files, outside of code."""
    found: list[str] = []
    _outside_code(text, lambda line: LINK.sub(lambda m: found.append(m[0]) or m[0], line))
    return [link for link in found if "://" not in link and not link.startswith(("#", "mailto:"))]


def rewritten(text: str, origin: pathlib.Path) -> str:
    """The text with links that the site has.

    Args:
        origin: the file that it is of.
    """
    pages = included()
    return _outside_code(
        text, lambda line: LINK.sub(lambda match: _on_the_site(match[0], origin, pages), line)
    )


def expanded(text: str, page: pathlib.Path) -> str:
    """With included files, without their titles, for the page has its own."""

    def content(match: re.Match[str]) -> str:
        path = (page.parent / match[1]).resolve()
        body = path.read_text("utf-8").partition("\n")[2]
        return rewritten(body, path)

    return INCLUDE.sub(content, text)


def _on_the_site(link: str, origin: pathlib.Path, pages: dict[str, str]) -> str:
    if "://" in link or link.startswith(("#", "mailto:", "/")):
        return link
    path, hash_, fragment = link.partition("#")
    file = (origin.parent / path).resolve()
    if not file.exists() or not file.is_relative_to(ROOT):
        return link  # Sphinx says so
    name = _named(file)
    if file.is_relative_to(DOCS):
        return f"/{_named(file, DOCS)}{hash_}{fragment}"
    if name in pages:
        return f"/{pages[name]}.md{hash_}{fragment}"
    if file.suffix in COPIED:
        return f"/../{name}"
    results = re.fullmatch(r"benchmarks/results/([^/.]+)(/table\.md)?", name)
    if results and (ROOT / "benchmarks/results" / results[1] / "table.md").exists():
        return f"/measured/{results[1]}.md"
    return f"/sources/{name}.md"


def _named(path: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    return path.relative_to(root).as_posix()


def _outside_code(text: str, change) -> str:
    lines, fence = [], ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and fence and line.strip() == fence:
            fence = ""
        elif not fence:
            line = change(line)
        lines.append(line)
    return "".join(lines)


def source_pages() -> dict[str, str]:
    """Pages with the text of each file, and the names in each folder, that some page links to."""
    wanted: set[str] = set()
    for page in written():
        text = page.read_text("utf-8")
        parts = [(text, page)]
        for path in INCLUDE.findall(text):
            file = (page.parent / path).resolve()
            parts.append((file.read_text("utf-8"), file))
        for body, origin in parts:
            wanted |= {
                link.removeprefix("/sources/").removesuffix(".md")
                for link in links(rewritten(body, origin))
                if link.startswith("/sources/")
            }
    return {name: _shown(ROOT / name, wanted) for name in sorted(wanted)}


def _shown(path: pathlib.Path, wanted: set[str]) -> str:
    name = _named(path)
    head = f"---\norphan: true\nnosearch: true\n---\n\n# `{name}`\n\n"
    if not path.is_dir():
        language = LANGUAGES.get(path.suffix, "text")
        return f"{head}```{{literalinclude}} /../{name}\n:language: {language}\n```\n"
    files = sorted(p for p in path.iterdir() if p.suffix in LANGUAGES)
    lines = [f"- {_linked(file, wanted)}\n" for file in files]
    return head + "A folder of the repository:\n\n" + "".join(lines)


def _linked(file: pathlib.Path, wanted: set[str]) -> str:
    """A file's name, with a link where there is a page of it."""
    name = _named(file)
    if name.startswith("cpfast/recipes/") and file.suffix == ".toml":
        return f"[`{file.name}`](/methods/recipes/{file.stem}.md)"
    return f"[`{file.name}`](/sources/{name}.md)" if name in wanted else f"`{file.name}`"


def _prepare(app) -> None:
    generated.write("sources", source_pages())


def _read(app, docname: str, source: list[str]) -> None:
    page = DOCS / f"{docname}.md"
    if page in written():
        for path in INCLUDE.findall(source[0]):
            app.env.note_dependency(str((page.parent / path).resolve()))
        source[0] = expanded(rewritten(source[0], page), page)


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", _prepare)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
