"""Bounds of a mean by betting: how often they are wrong over many looks, and what they find."""

import math

import numpy as np
import pytest

from cpfast.train import anytime

LOOKS = 30


def differences(generator, count, gained, lost):
    """Of two models of which one is right alone on a share of the samples, the other on another."""
    shares = [gained, lost, 1 - gained - lost]
    return generator.choice([1.0, -1.0, 0.0], size=count, p=shares)


def fractions(generator, count, mean):
    """As of sequences: anywhere in [-1, 1], of a mean."""
    return 2 * generator.beta(4 * (1 + mean), 4 * (1 - mean), size=count) - 1


@pytest.mark.parametrize("shown", [anytime.is_above, anytime.is_below])
@pytest.mark.parametrize(
    "draw",
    [
        lambda generator: differences(generator, 200, 0.06, 0.04),
        lambda generator: differences(generator, 200, 0.02, 0.0),
        lambda generator: differences(generator, 200, 0.51, 0.49),
        lambda generator: fractions(generator, 200, 0.02),
    ],
    ids=["differ", "rare", "always", "sequences"],
)
def test_false_alarms_over_many_looks_stay_below_alpha(draw, shown):
    """At the boundary, with other values at each look, which is the most that a bound of the union
    must bear."""
    generator = np.random.default_rng(0)
    alpha, runs = 0.2, 200
    alarms = sum(
        any(shown(draw(generator), 0.02, anytime.level(look, alpha)) for look in range(1, LOOKS))
        for _ in range(runs)
    )
    assert alarms / runs < alpha


def test_a_look_of_one_is_right_too():
    generator = np.random.default_rng(1)
    found = [anytime.is_above(differences(generator, 500, 0.05, 0.05), 0.0) for _ in range(1000)]
    assert 0 < np.mean(found) < 0.05


@pytest.mark.parametrize(
    ("gained", "lost", "look", "least"),
    [(0.07, 0.02, 1, 0.75), (0.07, 0.02, 5, 0.4), (0.05, 0.0, 5, 0.95), (0.12, 0.02, 5, 0.95)],
)
def test_a_loss_of_five_points_is_found_with_500_samples(gained, lost, look, least):
    generator = np.random.default_rng(2)
    level = anytime.level(look)
    found = [
        anytime.is_above(differences(generator, 500, gained, lost), 0.005, level)
        for _ in range(200)
    ]
    assert np.mean(found) >= least


def test_that_it_costs_less_is_found():
    generator = np.random.default_rng(3)
    found = [anytime.is_below(differences(generator, 500, 0.02, 0.02), 0.05) for _ in range(200)]
    assert np.mean(found) >= 0.9


def test_bounds_are_where_the_tests_turn():
    generator = np.random.default_rng(4)
    values = differences(generator, 300, 0.2, 0.05)
    lower, upper = anytime.bounds(values, 0.1)
    assert -1 < lower < values.mean() < upper < 1
    for mean in np.linspace(-0.99, 0.99, 67):
        assert anytime.is_above(values, mean, 0.1) == (mean <= lower)
        assert anytime.is_below(values, mean, 0.1) == (mean >= upper)
    mirrored = anytime.bounds(-values, 0.1)
    assert mirrored == (-upper, -lower)


def test_bounds_become_narrow_and_alpha_makes_them_wide():
    generator = np.random.default_rng(5)
    values = fractions(generator, 20_000, 0.1)
    lower, upper = anytime.bounds(values)
    assert 0.08 < lower < 0.1 < upper < 0.12
    few = anytime.bounds(values[:200])
    assert few.lower < lower and few.upper > upper
    sure = anytime.bounds(values, 0.001)
    assert sure.lower < lower and sure.upper > upper


def test_the_capital_is_that_of_bets_made_one_by_one():
    """Against a plain loop of arXiv 2010.09686, section 3.2, at a mean in [0, 1]."""
    generator = np.random.default_rng(6)
    values = (1 + differences(generator, 120, 0.3, 0.1)) / 2
    mean, alpha = 0.52, 0.05
    capital, most, total, squares = 1.0, 1.0, 0.5, 0.25
    for number, value in enumerate(values, 1):
        variance = squares / number
        stake = min(math.sqrt(2 * math.log(1 / alpha) / (len(values) * variance)), 0.9 / mean)
        capital *= 1 + stake * (value - mean)
        most = max(most, capital)
        total += value
        squares += (value - total / (number + 1)) ** 2
    stakes = anytime._stakes(values, mean, alpha)
    found = np.log1p(stakes * (values - mean)).cumsum().max()
    assert found == pytest.approx(math.log(most))
    assert anytime.is_above(2 * values - 1, 2 * mean - 1, alpha) == (most >= 1 / alpha)


def test_without_values_nothing_is_shown():
    assert not anytime.is_above(np.zeros(0), -0.5) and not anytime.is_below(np.zeros(0), 0.5)
    assert anytime.bounds(np.zeros(0)) == (-1, 1)


def test_all_levels_add_up_to_alpha():
    levels = [anytime.level(look, 0.05) for look in range(1, 10_000)]
    assert 0.0499 < sum(levels) < 0.05
