"""What all pictures share."""

import pytest

from cpfast.train.plots.style import STYLE, load_pyplot, save

WORDS = "of a folder with a long name, some model: something in some of 20 epochs; 3 seeds "


@pytest.mark.needs("matplotlib")
def test_titles_stay_within_the_picture(tmp_path):
    pyplot = load_pyplot()
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(1, 2, figsize=(6.5, 4), layout="constrained")
        title = figure.suptitle(2 * WORDS)
        panels[0].set_title(WORDS)
        panels[1].set_title("short")
        save(figure, tmp_path / "picture.png")
        for text in (title, panels[0].title, panels[1].title):
            box, whole = text.get_window_extent(), figure.bbox
            assert box.x0 >= whole.x0 and box.x1 <= whole.x1
            assert box.y0 >= whole.y0 and box.y1 <= whole.y1
        pyplot.close(figure)
