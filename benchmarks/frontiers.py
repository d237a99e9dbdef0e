"""Prints how far each method stands from the tuned control on several sets, as a Markdown table:
python -m benchmarks.frontiers FOLDER...

Each folder is one of `cpfast study frontier`.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from cpfast.studies import read_results
from cpfast.studies.frontier import Frontier, curve
from cpfast.studies.frontier.curve import Distance
from cpfast.studies.frontier.methods import CONTROL
from cpfast.studies.frontier.table import LEVEL
from cpfast.studies.statistics import estimate

LEGEND = (
    "Points over the tuned control at equal operations: the mean over the budgets, paired by seed, "
    "with its 95 % interval; after an arrow the budgets, in percent, at which it is seen above (↑) "
    f"or below (↓) the control at a level of {LEVEL:g}, after Holm's correction over all methods "
    "and budgets of the set. Visible: the difference at "
    "one budget that the seeds would have shown with a probability of "
    f"{curve.POWER:g}, without that correction; the median over methods and budgets."
)


def by_method(folder: Path) -> tuple[int, dict[str, list[Distance]]]:
    """The seeds, and the distances of each method by budget."""
    results = read_results(folder)
    study = Frontier.of(results)
    found: dict[str, list[Distance]] = {}
    for one in curve.distances(study, results):
        if one.arm != CONTROL:
            found.setdefault(one.arm, []).append(one)
    return len(study.seeds), found


def cell(found: list[Distance]) -> str:
    mean = estimate(curve.over_budgets(found))
    if mean is None:
        return ""
    seen = [
        (one.gain.mean > 0, one.budget)
        for one in found
        if one.gain is not None and one.adjusted is not None and one.adjusted < LEVEL
    ]
    words = []
    for is_above in (True, False):
        if budgets := [str(budget) for above, budget in seen if above == is_above]:
            words.append(f"<br>{'↑' if is_above else '↓'} {', '.join(budgets)}")
    return mean.text(2, sign=True) + "".join(words)


def table(folders: list[Path]) -> str:
    sets = [by_method(folder) for folder in folders]
    names = {name: None for _, found in sets for name in found}  # in order

    def place(name: str) -> float:
        means = [estimate(curve.over_budgets(found.get(name, []))) for _, found in sets]
        return -statistics.fmean([mean.mean for mean in means if mean is not None] or [-1e9])

    rows = [[name, *(cell(found.get(name, [])) for _, found in sets)]
            for name in sorted(names, key=place)]  # fmt: skip
    powers = [
        [one.visible for of_one in found.values() for one in of_one if one.visible is not None]
        for _, found in sets
    ]
    rows += [
        ["seeds", *(str(seeds) for seeds, _ in sets)],
        ["visible", *(f"{statistics.median(some):.2f}" if some else "" for some in powers)],
    ]
    header = ["method", *(folder.name.removesuffix("-frontier") for folder in folders)]
    lines = [header, ["---", *("---:" for _ in folders)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(paths: list[str]) -> None:
    print(table([Path(path) for path in paths]))
    print(f"\n{LEGEND}")


if __name__ == "__main__":
    main(sys.argv[1:])
