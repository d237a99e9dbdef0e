"""Which images are mirrored where nobody says whether: what the names of classes tell."""

import pytest
from support.image_files import write_images

from cpfast.train.config import Config
from cpfast.train.data.mirroring import have_sides


@pytest.mark.parametrize(
    "classes",
    [
        "0123456789", ["00", "01", "09"], "abc", ["A", "B", "del", "C"], "あいう",
        ["zero", "one", "Two"], ["digit_3", "digit 4"], ["upper_A", "a-lower"], ["LetterB", "b"],
        ["turn left", "stop"], ["TurnRight", "Stop"], ["left", "stop"], ["hand-right-2", "b", "cc"],
    ],
)  # fmt: skip
def test_characters_and_sides(classes):
    assert have_sides(classes)


@pytest.mark.parametrize(
    "classes",
    [
        ["cat", "dog"], ["n01440764", "n01443537"], ["10", "11", "102"], ["a", "cat", "dog"],
        ["bright", "leftover"], ["Upright", "copyright"], ["one eye", "two eyes"], ["class 10"], [],
        ["upper", "lower"], ["letter", "digit"],
    ],
)  # fmt: skip
def test_other_names(classes):
    assert not have_sides(classes)


def flip(path, **options):
    return Config.from_options({"data": str(path), **options}).flip


@pytest.mark.parametrize(("names", "mirrored"), [("38", False), (("cat", "dog"), True)])
@pytest.mark.parametrize("inner", ["", "one level down"])
@pytest.mark.parametrize("split", [True, False])
def test_folders(tmp_path, names, mirrored, inner, split):
    for place in ("train", "test") if split else ("",):
        for name in names:
            write_images(tmp_path / inner / place / name, 2)
    assert flip(tmp_path) == mirrored
    assert flip(tmp_path, flip=True) and not flip(tmp_path, flip=False)
