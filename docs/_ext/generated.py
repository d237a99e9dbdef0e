"""Pages that are made anew for each build, in folders that git ignores."""

import pathlib
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLDERS = ("methods", "measured", "sources")


def write(folder: str, pages: Mapping[str, str]) -> None:
    """Exactly these pages in a folder of docs/; one that has not changed is left alone, so that
    Sphinx need not read it again."""
    for name, text in pages.items():
        path = DOCS / folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for path in (DOCS / folder).rglob("*.md"):
        if path.relative_to(DOCS / folder).as_posix().removesuffix(".md") not in pages:
            path.unlink()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """As Markdown; the last so many columns are numbers."""
    if not rows:
        return ""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))
