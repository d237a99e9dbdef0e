"""Time series that install with aeon, of the UCR and UEA archives, with their published splits."""

from __future__ import annotations

from cpfast.train.data import DataSet, datasets, ts
from cpfast.train.data.installed import locate
from cpfast.train.data.sets import FloatData

# Our name: theirs, and what it is. JapaneseVowels, whose lengths differ, comes in one length too.
SETS = {
    "arrow-head": ("ArrowHead", "36 + 175 outlines of arrowheads, 251 steps, 3 classes"),
    "basic-motions": ("BasicMotions", "40 + 40 motions of a wrist, 6 channels, 4 classes"),
    "gun-point": ("GunPoint", "50 + 150 motions of a hand, 150 steps, 2 classes"),
    "italy-power-demand": ("ItalyPowerDemand", "67 + 1,029 days of power, 24 hours, 2 classes"),
    "japanese-vowels": ("JapaneseVowels_eq", "270 + 370 vowels, 25 steps, 12 channels, 9 speakers"),
    "osu-leaf": ("OSULeaf", "200 + 242 outlines of leaves, 427 steps, 6 classes"),
}


def _register(name: str) -> None:
    theirs, line = SETS[name]

    def load(limit: int | None, progress: bool, download: bool) -> FloatData:
        folder = theirs.removesuffix("_eq")
        file = f"datasets/data/{folder}/{theirs}{ts.TRAIN}"
        return ts.load(locate("aeon", file, name), limit, name)

    @datasets.register(name, source="aeon; timeseriesclassification.com", line=line)
    def make() -> DataSet:
        return DataSet(load, reads="series")


for _name in SETS:
    _register(_name)
