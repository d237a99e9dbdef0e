"""Names of people, which install with the package `names`: next-character prediction.

The commonest of the United States' census of 1990, first names and surnames, each once.
"""

from __future__ import annotations

import numpy as np

from cpfast.train.data import DataSet, characters, datasets
from cpfast.train.data.installed import locate
from cpfast.train.data.sets import TextData

FILES = ("dist.female.first", "dist.male.first", "dist.all.last")
MOST = 20_000  # of each file: they are in the order of their frequency
LENGTH = 64
HELD_OUT = 10  # one in so many


def load(limit: int | None) -> TextData:
    """In an order drawn by a fixed seed, a name a line; a tenth of the names is for testing."""
    found: dict[str, None] = {}
    for file in FILES:
        lines = locate("names", file, "names").read_text(encoding="ascii").splitlines()
        found.update((line.split()[0].capitalize(), None) for line in lines[:MOST])
    generator = np.random.Generator(np.random.PCG64(0))
    shuffled = [list(found)[place] for place in generator.permutation(len(found))]
    held = len(shuffled) // HELD_OUT
    train, test = "\n".join(shuffled[held:]), "\n".join(shuffled[:held])
    return characters.text_data("names", train, test, limit=limit, length=LENGTH, name="names")


@datasets.register("names", source="United States' census of 1990; treyhunter/names")
def names() -> DataSet:
    """25,000 first names and surnames, in sequences of 64 characters; comes with names."""
    return DataSet(lambda limit, progress, download: load(limit), reads="text")
