"""Text that installs with Python: its documentation, for next-token prediction.

The language reference's topics (pydoc_data.topics, what `help("for")` shows) and the docstrings of
the standard library's top-level modules, which are read from their source and not imported.
"""

from __future__ import annotations

import ast
import importlib
import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np
import torch

from cpfast.train.data import DataSet, datasets
from cpfast.train.data.sets import TextData
from cpfast.train.data.split import some
from cpfast.train.errors import UserError

LENGTH = 128  # tokens that are predicted in a sequence
VOCABULARY = "\n" + "".join(chr(code) for code in range(32, 127))
HELD_OUT = 10  # about one document in so many
# what some distributions of Python leave out or replace
SEPARATE = {"antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pip", "sitecustomize",
            "this", "tkinter", "turtle", "turtledemo", "venv"}  # fmt: skip


def load(limit: int | None) -> TextData:
    """Sequences of `LENGTH` + 1 characters, each starting at the last one of that before it.

    About a tenth of the documents, the same in every version of Python, is held out for testing.
    Topics quote each other at length; so a paragraph is kept once, and first of all in the test
    text. Characters outside of ASCII become "?".

    Raises:
        UserError: this Python has no pydoc_data, or fewer sequences than `limit`.
    """
    documents = sorted(_documents().items(), key=lambda item: (not _is_held_out(item[0]), item[0]))
    texts: dict[bool, list[str]] = {True: [], False: []}
    seen: set[str] = set()
    for name, document in documents:
        for paragraph in document.split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                texts[_is_held_out(name)].append(paragraph.strip("\n"))
    train, test = (_sequences("\n\n".join(texts[held_out])) for held_out in (False, True))
    train = train[some(len(train), limit)]
    return TextData(torch.from_numpy(train), torch.from_numpy(test), VOCABULARY, "python-docs")


def _documents() -> dict[str, str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UserError(
            f"--data python-docs: this Python comes without its documentation ({error})"
        ) from error
    documents = {f"topic {name}": text for name, text in topics.items()}
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - SEPARATE):
        for path in (library / f"{name}.py", library / name / "__init__.py"):
            if path.is_file():
                documents[f"module {name}"] = "\n\n".join(_docstrings(path))
    return documents


def _docstrings(path: Path) -> list[str]:
    """Those of a module, its classes and its functions, in the order of the source."""
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def _sequences(text: str) -> np.ndarray:
    """uint8 [N, LENGTH + 1]; what is left at the end is dropped."""
    codes = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
    # "\n" to 0, " " to 1 and so on; control characters are none of the documentation's
    tokens = np.clip(codes, 31, 126) - 31
    windows = np.lib.stride_tricks.sliding_window_view(tokens, LENGTH + 1)
    return windows[::LENGTH].copy()


@datasets.register("python-docs", source="docs.python.org")
def python_docs() -> DataSet:
    """Python's own documentation, in sequences of 128 characters; comes with Python."""
    return DataSet(lambda limit, progress, download: load(limit), reads="text")
