import pathlib

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def is_missing(target: pathlib.Path) -> bool:
    """Whether a page points to what is not there; a source distribution lacks the results."""
    target = target.resolve()
    return not target.exists() and (RESULTS.exists() or not target.is_relative_to(RESULTS))
