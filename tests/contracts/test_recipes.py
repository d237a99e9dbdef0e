"""What holds for every action and every named recipe, whoever wrote it."""

import copy
import pickle

import pytest

import cpfast
from cpfast import EpochSettings, Moment
from cpfast.recipes import Window, actions, recipes

TOTAL = 12
ROTATIONS = tuple((0.5, 0.5 + 0.001 * e, 0.1 * e) for e in range(TOTAL))
MOMENTS = [
    Moment(epoch, TOTAL, end if end is not None and epoch >= end else None, ROTATIONS[:epoch])
    for end in (None, 1, 5, 11)
    for epoch in range(TOTAL)
]


@pytest.fixture(params=sorted(actions))
def action(request):
    return actions.make(request.param)


@pytest.fixture(params=sorted(recipes))
def recipe(request):
    return cpfast.Recipe.named(request.param, TOTAL)


def test_an_action_is_pure(action):
    for settings in (EpochSettings(), EpochSettings(3, True, 0.3, 0.5, 1)):
        for moment in MOMENTS:
            for amount in (0.1, 0.5, 1.0):
                before = copy.deepcopy((action, settings))
                changed = action.apply(settings, amount, moment)
                assert isinstance(changed, EpochSettings)
                assert action.apply(settings, amount, moment) == changed
                assert (action, settings) == before
                hash(changed.shape)


def test_an_action_holds_numbers_alone(action):
    assert isinstance(action.window, Window)
    assert copy.deepcopy(action) == pickle.loads(pickle.dumps(action)) == action


def test_the_settings_of_an_epoch_depend_on_nothing_else(recipe):
    forwards = [recipe.settings(moment) for moment in MOMENTS]
    backwards = [recipe.settings(moment) for moment in reversed(MOMENTS)]
    assert forwards == backwards[::-1]
    for settings in forwards:
        assert settings.repeats >= 1 and settings.frozen >= 0
        assert settings.keep is None or 0 < settings.keep <= 1


def test_a_recipe_is_copied_and_pickled(recipe):
    assert copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe


def test_only_what_uses_the_detector_follows_the_period(recipe):
    def all_settings(end):
        moments = [Moment(e, TOTAL, end, ROTATIONS[:e]) for e in range(TOTAL)]
        return [recipe.settings(moment) for moment in moments]

    if not recipe.uses_detector:
        assert all_settings(None) == all_settings(3)
    else:
        assert all_settings(None) != all_settings(3)
