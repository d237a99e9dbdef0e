"""The recipes that have a name: the files of this folder."""

from __future__ import annotations

from pathlib import Path

from cpfast.recipes.file import RecipeFile
from cpfast.recipes.recipe import recipes

for _path in sorted(Path(__file__).parent.glob("*.toml")):
    _file = RecipeFile.read(_path)
    recipes.register(_path.stem, source=_file.source)(_file.factory())
