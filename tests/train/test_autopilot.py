"""`--budget`: what a share of a training's cost is spent on."""

import pytest

from cpfast.cli.options import percent
from cpfast.moment import Moment
from cpfast.train import autopilot, planned
from cpfast.train.config import Config
from cpfast.train.errors import UserError

SIZE = 256


def config(side=None, **options):
    return Config.from_options({"preset": "fast", **options}, SIZE, side)


@pytest.mark.parametrize("budget", [10, 12.5, 30, 60, 100])
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_what_is_no_image_is_trained_as_ever_but_for_the_schedule(preset, budget):
    whole = config(preset=preset, epochs=40, data="segments")
    ours = config(preset=preset, epochs=40, budget=budget, data="segments")
    assert ours.epochs == int(40 * budget / 100)
    assert (ours.method, ours.repeats, ours.passes, ours.schedule) == ("full", 1, 1, "linear")
    for name in set(whole.to_dict()) - {"epochs", "method", "repeats", "schedule", "eval_every"}:
        assert getattr(ours, name) == getattr(whole, name)


@pytest.mark.parametrize("side", [None, 8, 32])
@pytest.mark.parametrize("budget", [2, 5, 10, 20, 40, 60, 100])
@pytest.mark.parametrize("epochs", [50, 120])
def test_it_costs_no_more_than_the_share(budget, epochs, side):
    """And less by no more than an epoch."""
    ours = config(epochs=epochs, budget=budget, side=side)
    passes = epochs * budget / 100
    one = planned.of_an_epoch(ours.recipe(), ours.epochs)
    assert ours.epochs * one <= passes + 1e-6
    more = ours.replace(epochs=ours.epochs + 1)
    assert more.epochs * planned.of_an_epoch(more.recipe(), more.epochs) > passes


def test_few_passes_over_images_are_not_augmented():
    for side, epochs, expected in ((8, 8, "none"), (8, 9, "paper"), (None, 8, "paper")):
        assert config(epochs=2 * epochs, budget=50, side=side).augment == expected
    assert config(epochs=16, budget=50, side=8, augment="crop-flip").augment == "crop-flip"
    assert config(epochs=17, budget=50, side=8).augment == "none"  # 8 whole ones


def test_the_last_of_many_passes_over_images_is_not_augmented():
    def factors(**options):
        made = config(**{"epochs": 20, "budget": 50, "side": 8, **options})
        of_epochs = [made.recipe().settings(Moment(epoch, made.epochs, None))
                     for epoch in range(made.epochs)]  # fmt: skip
        return made.augment, [settings.augment for settings in of_epochs]

    assert factors() == ("paper", [1.0] * 8 + [0.0] * 2)
    assert factors(augment="crop-flip") == ("crop-flip", [1.0] * 8 + [0.0] * 2)
    assert factors(method="full") == ("paper", [1.0] * 10)
    assert factors(data="segments", side=None) == ("paper", [1.0] * 10)
    grows = factors(side=32, budget=40, epochs=30)
    assert grows[0] == "paper" and set(grows[1]) == {1.0}  # one recipe at a time


def test_images_grow_where_they_are_large_and_the_budget_is_small():
    def made(side=32, budget=20, **options):
        return config(epochs=100, budget=budget, side=side, **options)

    grown = made()
    assert (grown.method, grown.repeats) == ("growing-resolution", 1) and 24 <= grown.epochs <= 26
    assert [grown.recipe().settings(Moment(epoch, grown.epochs, None)).resolution
            for epoch in (0, grown.epochs // 2)] == [0.5, 1.0]  # fmt: skip
    for plain, method in (
        (made(side=8), "clean-finish"), (made(side=None), "full"),
        (made(budget=60), "clean-finish"), (made(budget=3), "full"),
        (made(method="full"), "full"), (made(model="vit-tiny"), "clean-finish"),
    ):  # fmt: skip
        assert plain.method == method
    assert made(budget=3).epochs == 3


def test_what_is_given_stays():
    ours = config(budget=30, lr=0.7, schedule="constant", epochs=20, method="fast")
    assert (ours.lr, ours.schedule, ours.epochs) == (0.7, "constant", 6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0.3}, r"--budget must be in 1 .. 100 \(percent\), got 0.3"),
        ({"budget": 101}, r"--budget must be in 1 .. 100 \(percent\), got 101"),
        ({"budget": float("nan")}, "got nan"),
        ({"budget": 5, "epochs": 19}, r"--budget 5 is less than one of 19 epochs \(--epochs\)"),
        ({"budget": 30, "method": "detector"}, "not with --method detector"),
        ({"budget": 30, "method": "mine", "recipe_text": ""}, "not with --recipe mine"),
        ({"budget": 30, "repeats": 3}, "not with --repeats 3"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        config(**options)


def test_percent():
    assert [percent(text) for text in ("30%", "30", " 7.5 % ")] == [30.0, 30.0, 7.5]


def test_settings_stay_as_they_are():
    settings = {"epochs": 10, "lr": 0.1, "method": "fast"}
    before = dict(settings)
    autopilot.within(settings, (), 50)
    assert settings == before
