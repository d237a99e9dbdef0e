"""What the pictures of studies share."""

import pytest

from cpfast.studies.pictures import dodged, mark
from cpfast.train.plots.style import load_pyplot


@pytest.mark.parametrize("places", [[5], [2, 8], [0, 4, 16]])
def test_series_stand_beside_each_other(places):
    moved = [dodged(places, number, 3) for number in range(3)]
    assert moved[1] == places
    for position, place in enumerate(places):
        at = [one[position] for one in moved]
        assert at == sorted(set(at)) and max(abs(x - place) for x in at) < 0.5


@pytest.mark.needs("matplotlib")
def test_a_single_place_has_room_and_one_tick():
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots()
    for number in range(3):
        axes.plot(dodged([5], number, 3), [1.0 + number], "o")
    mark(axes, [5])
    assert axes.get_xticks().tolist() == [5]
    low, high = axes.get_xlim()
    aside = dodged([5], 2, 3)[0] - 5
    assert 5 - low > 2.5 * aside and high - 5 > 2.5 * aside
    pyplot.close(figure)
