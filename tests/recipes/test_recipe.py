import math

import pytest

from cpfast import EpochSettings, Moment, Recipe, Window
from cpfast.recipes import Freeze, Prune, Repeats, Resolution, recipes


def phases(recipe, end_epoch):
    total = recipe.total_epochs
    settings = [recipe.settings(Moment(e, total, end_epoch)) for e in range(total)]
    return [(s.repeats, s.prune) for s in settings]


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [
        ("full", (3, False), (3, False)),
        ("detector", (3, False), (1, False)),
        ("prune", (3, True), (3, True)),
        ("detector+prune", (3, False), (1, True)),
        ("freeze", (3, False), (3, False)),
    ],
)
def test_what_each_method_changes_at_the_end_of_the_period(method, before, after):
    recipe = Recipe.named(method, 8)
    # InfoBatch's .875: the last epoch of eight leaves nothing out.
    assert phases(recipe, None)[:7] == [before] * 7
    # The period ended after 4 epochs: epochs 0 to 3 were in it.
    assert phases(recipe, 4)[:7] == [before] * 4 + [after] * 3
    assert phases(recipe, 4)[7] == (after[0], False)
    assert recipe.uses_detector == (before != after)
    assert method in recipes


@pytest.mark.parametrize("anneal", [0.5, 0.85, 0.95, 1.0])
def test_annealing_resumes_the_full_recipe(anneal):
    recipe = Recipe.named("detector+prune", 200, anneal=anneal)
    resumed = 25 + math.ceil(175 * anneal)
    expected = [(3, False)] * 25 + [(1, True)] * (resumed - 25) + [(3, False)] * (200 - resumed)
    assert phases(recipe, 25) == expected


def test_the_papers_saving():
    # 1 - (T + (k - 1) cp) / (kT) with T = 200, k = 3, cp = 25.
    passes = sum(repeats for repeats, _ in phases(Recipe.named("detector", 200), 25))
    assert 1 - passes / 600 == pytest.approx(1 - (200 + 2 * 25) / 600)


def settings(actions, epoch=0, total=10, end=None, rotations=()):
    return Recipe(total, actions).settings(Moment(epoch, total, end, rotations))


@pytest.mark.parametrize(
    ("window", "end", "inside"),
    [
        (Window(), None, range(20)),
        (Window("during"), None, range(20)),
        (Window("during"), 7, range(7)),
        (Window("after"), None, []),
        (Window("after"), 7, range(7, 20)),
        (Window("after", begin=0.5), 7, range(7 + 7, 20)),
        (Window("after", end=0.5), 7, range(7, 7 + 7)),
        (Window("after", until=0.5), 7, range(7, 10)),
        (Window(begin=0.75), None, range(15, 20)),
        (Window(until=0.875), None, range(18)),
    ],
)
def test_windows(window, end, inside):
    amounts = [window.amount(Moment(epoch, 20, end)) for epoch in range(20)]
    assert amounts == [float(epoch in inside) for epoch in range(20)]


def test_a_ramp_rises_to_one():
    window = Window(begin=0.5, ramp=0.2)
    amounts = [window.amount(Moment(epoch, 20)) for epoch in range(20)]
    assert amounts == [0.0] * 10 + [0.25, 0.5, 0.75] + [1.0] * 7
    keeps = [settings([Prune(0.5, window)], epoch, 20).keep for epoch in (9, 10, 12, 13)]
    assert keeps == [None, 0.875, 0.625, 0.5]
    assert settings([Repeats(3), Repeats(1, window)], 11, 20).repeats == 2


def test_an_empty_recipe_is_one_full_pass():
    assert settings([]) == EpochSettings(
        repeats=1, prune=False, keep=None, lr=1.0, frozen=0, weight_decay=1.0, augment=1.0
    )


def test_freeze_counts_the_first_layers_that_stopped():
    still, slow, fast = [0.5] * 9, [0.5 + 0.001 * e for e in range(9)], [0.1 * e for e in range(9)]

    def frozen(*layers, epoch=9, **options):
        rotations = tuple(zip(*layers, strict=True))
        return settings([Freeze(**options)], epoch, 20, rotations=rotations).frozen

    assert frozen(still, slow, fast) == 2
    assert frozen(still, fast, still) == 1
    assert frozen(fast, still, still) == 0
    assert frozen(still, still, still) == 2  # never the last
    assert frozen(still, slow, fast, below=0.001) == 1
    assert frozen(still, slow, fast, epoch=3) == 0  # it looks three epochs back
    # What comes later plays no part: the settings of an epoch can be asked for at any time.
    assert frozen(still, slow, fast, epoch=5) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(0), "total_epochs: .* got 0"),
        (lambda: Repeats(0), "repeats: .* got 0"),
        (lambda: Prune(0), "keep: .* got 0"),
        (lambda: Prune(window=Window(ramp=0.1)), "keep: "),
        (lambda: Freeze(below=1.0), "below: .* got 1.0"),
        (lambda: Freeze(epochs=0), "epochs: .* got 0"),
        (lambda: Window("sometimes"), "phase: .* got 'sometimes'"),
        (lambda: Window(begin=1.5), "begin: .* got 1.5"),
        (lambda: Window("during", end=0.5), "phase: 'during' is whole"),
        (lambda: Window(begin=0.6, end=0.5), "begin: expected at most end, 0.5, got 0.6"),
        (lambda: Recipe.named("detector", 10, anneal=1.5), "end: .* got 1.5"),
        (lambda: Recipe.named("magic", 10), "recipe: .* got 'magic'"),
        (lambda: Recipe.named("detectr", 10), "did you mean detector"),
        (
            lambda: Recipe.named("full", 10, keep=0.5),
            "keep: expected .*repeats, got 0.5 for 'full'",
        ),
        (lambda: settings([], epoch=10), r"epoch: expected one of 0\.\.9, got 10"),
        (lambda: Recipe(10).settings(Moment(0, 9)), "moment: expected one of 10 epochs, got 9"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_window_between_epochs_is_exact_at_every_length():
    for total in (1, 2, 3, 7, 49, 120, 200, 333):
        for first in {0, 1, total // 3, total - 1, total}:
            for last in {first, total // 2, total - 1, total}:
                if first <= last:
                    window = Window.between(first, last, total)
                    amounts = [window.amount(Moment(epoch, total)) for epoch in range(total)]
                    assert amounts == [float(first <= e < last) for e in range(total)]


def test_what_is_possible_is_found_at_any_length():
    for total in (1, 7, 200, 10**6):
        recipe = Recipe(total, [Repeats(3), Repeats(1, Window("after")), Resolution(0.5),
                                Resolution(1.0, Window(begin=0.6, ramp=0.01))])  # fmt: skip
        possible = recipe.possible()
        assert {s.repeats for s in possible} == ({1, 3} if total > 1 else {3})
        if total >= 200:
            sizes = {s.resolution for s in possible}
            assert {0.5, 1.0} <= sizes and len(sizes) == (9 if total > 800 else 3)
        for settings in possible if total <= 200 else ():
            moments = [Moment(e, total, end) for end in (None, *range(1, total + 1))
                       for e in range(total)]  # fmt: skip
            assert settings in {recipe.settings(m) for m in moments}
            break
