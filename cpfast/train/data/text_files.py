"""Text in files: one, or all those of a folder, for next-character prediction."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cpfast.train.data import LAST, Layout, characters, layouts
from cpfast.train.data.listing import is_hidden, is_image
from cpfast.train.data.sets import TextData
from cpfast.train.errors import UserError

SUFFIXES = (
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".jsonl", ".log",
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts",
    ".jsx", ".tsx", ".rb", ".php", ".sh", ".sql", ".jl", ".r", ".lua", ".swift", ".kt", ".cs",
)  # fmt: skip
HELD_OUT = 10  # one document in so many, or that share of the text of fewer


def is_text(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def holds(root: Path) -> bool:
    """Whether most files in a folder, at any depth, are text, and none is an image."""
    texts = others = 0
    for _, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not is_hidden(name)]
        for name in filter(lambda name: not is_hidden(name), files):
            if is_image(name):
                return False
            texts, others = texts + is_text(Path(name)), others + (not is_text(Path(name)))
    return texts > others


def load(root: Path, limit: int | None, progress: bool) -> TextData:
    """A tenth of the documents, drawn by a fixed seed, is for testing; of fewer than ten documents
    the last tenth of their text. Where there are train.txt and test.txt, those are the split.

    Bytes that are no UTF-8 are replaced. See `characters` for the vocabulary.

    Raises:
        UserError: naming the file that cannot be read, or the folder without enough text.
    """
    split = [root / f"{part}.txt" for part in ("train", "test")]
    if all(part.is_file() for part in split):
        train, test = map(_read, split)
        return characters.text_data(str(root), train, test, limit=limit, name=root.name)
    paths = [root] if root.is_file() else _listed(root)
    documents = [_read(path) for path in paths]
    held = len(documents) // HELD_OUT
    if held:
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(documents))
        chosen = set(order[:held].tolist())
        train, test = (
            "\n".join(text for place, text in enumerate(documents) if (place in chosen) == is_test)
            for is_test in (False, True)
        )
        note = f"{held:,} of {len(documents):,} documents are held out for testing"
    else:
        text = "\n".join(documents)
        cut = len(text) - len(text) // HELD_OUT
        train, test = text[:cut], text[cut:]
        note = "the last tenth of the text is held out for testing"
    return characters.text_data(str(root), train, test, limit=limit, name=root.name, notes=[note])


def _listed(root: Path) -> list[Path]:
    found = []
    for place, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        found += [Path(place) / name for name in sorted(files) if not is_hidden(name)]
    return [path for path in found if is_text(path)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


@layouts.register("text", source="this project", line="text files (.txt, .md, .py, ...)")
def layout() -> Layout:
    # Of .ts files, TypeScript's and time series', the latter come first where they are one file.
    return Layout(load, holds, is_text, order=LAST, reads=lambda path: "text")
