"""What each action changes, and by how much on the way there."""

import itertools
import math

import pytest

from cpfast import EpochSettings, Moment, Recipe, Window
from cpfast.recipes import (
    Augment,
    Batch,
    Cutmix,
    Freeze,
    LearningRate,
    Length,
    Mixup,
    Resolution,
    Volume,
    WeightDecay,
)

AFTER = Window("after")
RAMP = Window(begin=0.5, ramp=0.5)


def over(actions, name, total=8, end=None):
    recipe = Recipe(total, actions)
    return [getattr(recipe.settings(Moment(e, total, end)), name) for e in range(total)]


@pytest.mark.parametrize(
    ("action", "name", "on", "off"),
    [
        (Augment(0.25, AFTER), "augment", 0.25, 1.0),
        (WeightDecay(0.0, AFTER), "weight_decay", 0.0, 1.0),
        (Mixup(0.3, AFTER), "mixup", 0.3, 0.0),
        (Cutmix(0.7, AFTER), "cutmix", 0.7, 0.0),
        (Resolution(0.5, AFTER), "resolution", 0.5, 1.0),
        (Length(0.25, AFTER), "length", 0.25, 1.0),
        (Batch(4, AFTER), "batch", 4, 1),
        (LearningRate(0.1, AFTER), "lr", 0.1, 1.0),
    ],
)
def test_it_changes_one_setting_within_its_window(action, name, on, off):
    assert over([action], name, end=3) == [off] * 3 + [on] * 5
    settings = Recipe(8, [action]).settings(Moment(5, 8, 3))
    assert settings._replace(**{name: off}) == EpochSettings()
    is_shape = name not in ("mixup", "cutmix", "lr")
    assert (getattr(settings.shape, name, None) == on) == is_shape


def test_ramps_go_in_eighths_where_a_step_is_compiled_for_each():
    assert over([Resolution(0.5), Resolution(1.0, RAMP)], "resolution") == (
        [0.5] * 4 + [0.625, 0.75, 0.875, 1.0]
    )
    slow = over([WeightDecay(0.0, Window(ramp=1.0))], "weight_decay", total=100)
    assert sorted({1 - value for value in slow}) == [n / 8 for n in range(1, 9)]
    assert over([Batch(4, RAMP)], "batch") == [1] * 4 + [2, 3, 3, 4]
    assert over([Mixup(0.8, RAMP)], "mixup") == pytest.approx([0] * 4 + [0.2, 0.4, 0.6, 0.8])


def test_a_pause_and_a_boost():
    # arXiv 2504.01737
    assert over([Mixup(0.2, AFTER)], "mixup", end=2) == [0] * 2 + [0.2] * 6
    boosted = over([Mixup(0.2), Mixup(0.8, Window("during"))], "mixup", end=2)
    assert boosted == pytest.approx([0.8] * 2 + [0.2] * 6)


@pytest.mark.parametrize("first", [None, 0.9, 0.5])
@pytest.mark.parametrize("window", [Window(), AFTER, Window(begin=0.25), Window(end=0.1)])
def test_a_volume_adds_up_to_its_budget(first, window):
    total, end = 40, 11
    keeps = over([Volume(0.7, first, window)], "keep", total, end)
    kept = [keep for keep in keeps if keep is not None]
    assert len(kept) == len(window.span(Moment(20, total, end)))
    assert sum(kept) == pytest.approx(0.7 * len(kept))
    if first is not None and len(kept) > 1:
        assert kept[0] == pytest.approx(first) and kept[-1] == pytest.approx(1.4 - first)
        steps = [b - a for a, b in itertools.pairwise(kept)]
        assert max(steps) - min(steps) < 1e-12


def settings_of(freeze, rotations, diffusion=(), lrs=(), total=20):
    moment = Moment(len(rotations), total, None, tuple(rotations), tuple(diffusion), tuple(lrs))
    return Recipe(total, [freeze]).settings(moment).frozen


def turned(rates):
    """Rotations of layers whose -ln(1 - rotation) grows by so much in each of six epochs."""
    return [tuple(1 - math.exp(-rate * (e + 1)) for rate in rates) for e in range(6)]


def test_freeze_by_what_noise_alone_would_do():
    # the null, the sum over an epoch's steps of lr x weight decay / (1 - momentum)
    null = [0.05] * 6
    freeze = Freeze(below=0.0, excess=0.1)
    assert settings_of(freeze, turned([0.05, 0.054, 0.056, 0.2]), null) == 2
    assert settings_of(freeze, turned([0.2, 0.05]), null) == 0
    assert settings_of(Freeze(below=0.0), turned([0.05, 0.05, 0.2]), null) == 0  # not asked for
    assert settings_of(freeze, turned([0.05, 0.05, 0.2]), [math.nan] * 6) == 0  # no null known
    assert settings_of(freeze, turned([0.05, 0.05, 0.2]), [0.0] * 6) == 0  # without weight decay
    assert settings_of(freeze, turned([0.9, 0.05]), [0.9] * 6) == 0  # saturated: says nothing


def test_a_restart_of_the_learning_rate_thaws():
    still = [(0.5, 0.5, 0.1 * e) for e in range(12)]
    lrs = [1, 0.8, 0.6, 0.4, 0.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01]

    def frozen(epoch):
        return settings_of(Freeze(), still[:epoch], lrs=lrs[: epoch + 1])

    assert [frozen(epoch) for epoch in range(13)] == [0] * 4 + [2] + [0] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augment(1.5), "factor: .* got 1.5"),
        (lambda: WeightDecay(-1.0), "factor: .* got -1"),
        (lambda: LearningRate(-1.0), "factor: .* got -1"),
        (lambda: Mixup(-0.1), "alpha: .* got -0.1"),
        (lambda: Cutmix(float("nan")), "alpha: .* got nan"),
        (lambda: Resolution(0.0), "share: .* got 0"),
        (lambda: Length(1.5), "share: .* got 1.5"),
        (lambda: Batch(0), "times: .* got 0"),
        (lambda: Volume(0.0), "budget: .* got 0"),
        (lambda: Volume(0.4, 0.9), "first: .* got 0.9"),
        (lambda: Volume(window=Window("during")), "window: "),
        (lambda: Volume(window=RAMP), "window: "),
        (lambda: Freeze(excess=-0.1), "excess: .* got -0.1"),
        (lambda: Window(begin=0.5, until=0.4), "until: expected at least begin, 0.5, got 0.4"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
