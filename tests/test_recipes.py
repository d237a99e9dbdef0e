import math

import pytest

from cpfast import Recipe
from cpfast.recipes import METHODS


def phases(recipe, end_epoch):
    return [tuple(recipe.phase(e, end_epoch)) for e in range(recipe.total_epochs)]


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [
        ("full", (3, False), (3, False)),
        ("detector", (3, False), (1, False)),
        ("prune", (3, True), (3, True)),
        ("detector+prune", (3, False), (1, True)),
    ],
)
def test_what_each_method_changes_at_the_end_of_the_period(method, before, after):
    recipe = Recipe.from_method(method, 10)
    assert phases(recipe, None) == [before] * 10
    # The period ended after 4 epochs: epochs 0 to 3 were in it.
    assert phases(recipe, 4) == [before] * 4 + [after] * 6
    assert recipe.uses_detector == (before != after)
    assert method in METHODS


@pytest.mark.parametrize("anneal", [0.5, 0.85, 0.95, 1.0])
def test_annealing_resumes_the_full_recipe(anneal):
    recipe = Recipe.from_method("detector+prune", 200, anneal=anneal)
    resumed = 25 + math.ceil(175 * anneal)
    expected = [(3, False)] * 25 + [(1, True)] * (resumed - 25) + [(3, False)] * (200 - resumed)
    assert phases(recipe, 25) == expected


def test_the_papers_saving():
    # 1 - (T + (k - 1) cp) / (kT) with T = 200, k = 3, cp = 25: METHODS of arXiv 2506.15954.
    recipe = Recipe.from_method("detector", 200)
    passes = sum(recipe.phase(e, 25).repeats for e in range(200))
    assert 1 - passes / 600 == pytest.approx(1 - (200 + 2 * 25) / 600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_epochs": 0}, "total_epochs: .* got 0"),
        ({"repeats": 0}, "repeats: .* got 0"),
        ({"repeats_after": 0}, "repeats_after: .* got 0"),
        ({"prune": "sometimes"}, "prune: .* got 'sometimes'"),
        ({"keep": 0}, "keep: .* got 0"),
        ({"anneal": 1.5}, "anneal: .* got 1.5"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"total_epochs": 10, **arguments})


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="method: .* got 'magic'"):
        Recipe.from_method("magic", 10)
    with pytest.raises(ValueError, match=r"epoch: expected one of 0\.\.9, got 10"):
        Recipe(10).phase(10)
