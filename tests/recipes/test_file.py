"""Recipes as TOML files: what they say, and the line that names what is wrong in one."""

import pathlib

import pytest

from cpfast import Moment, Recipe, Window
from cpfast.recipes import Mixup, Prune, RecipeFile, Repeats, Volume, recipes

FILE = """
summary = "Something of each."
source = "a test"

[options.repeats]
default = 2
help = "passes"

[options.keep]

[[actions]]
action = "repeats"
repeats = "$repeats"

[[actions]]
action = "prune"
keep = "$keep"
window = { phase = "after", until = 0.75 }

[[actions]]
action = "mixup"
alpha = 0.1
unless = "keep"

[[actions]]
action = "mixup"
alpha = 0.4
when = "keep"
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    return path


def test_a_file_is_the_same_as_plain_objects(path):
    pruned = Window("after", until=0.75)
    assert Recipe.read(path, 8) == Recipe(8, [Repeats(2), Prune(window=pruned), Mixup(0.1)])
    given = Recipe.read(path, 8, repeats=1, keep=0.3)
    assert given == Recipe(8, [Repeats(1), Prune(0.3, pruned), Mixup(0.4)])


def test_the_named_ones_are_files_whose_options_have_a_line():
    folder = pathlib.Path(__file__).parents[2] / "cpfast" / "recipes"
    names = {path.stem for path in folder.glob("*.toml")}
    assert names == set(recipes) and {"paper", "detector+prune", "early-decay"} <= names
    for name in names:
        file = RecipeFile.read(folder / f"{name}.toml")
        assert Recipe.read(folder / f"{name}.toml", 9) == Recipe.named(name, 9)
        assert file.summary.endswith(".") and file.source != str(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[actions]]", "[[action]]", "expected summary, .*actions, got 'action'"),
        (
            '"$repeats"',
            '"$repeat"',
            r"actions\[0\]: expected .* repeats, keep, got 'repeat'",
        ),
        ('"prune"', '"prun"', r"actions\[1\]: action: .* did you mean prune"),
        ("keep = ", "kept = ", r"actions\[1\]: expected .* got 'kept'; did you mean keep"),
        ("until = ", "untill = ", r"actions\[1\].window: .* got 'untill'; did you mean until"),
        ("0.75", "1.5", r"actions\[1\]: until: expected a fraction in \[0, 1\], got 1.5"),
        ('"after"', '"late"', r"actions\[1\]: phase: expected one of .* got 'late'"),
        ("alpha = 0.1", 'alpha = "much"', r"actions\[2\]: alpha: expected a number, got 'much'"),
        ("alpha = 0.1", "alpha = -1", r"actions\[2\]: alpha: expected a number from 0 on, got -1"),
        ('action = "repeats"', "", r"actions\[0\]: no action"),
        ('help = "passes"', "text = 1", "options.repeats: .* got 'text'"),
        ("default = 2", "default = ", r"\(at line 6"),
        ("[options.keep]", "[options.total_epochs]", "total_epochs: is the length"),
        ('unless = "keep"', 'unless = "kept"', r"actions\[2\]: expected one of .* got 'kept'"),
        ("{ phase", "3 # {", r"actions\[1\].window: expected a table, got 3"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(path, old, new, message):
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        Recipe.read(path, 8)
    assert len(str(caught.value).splitlines()) == 1
    assert "mine" in str(caught.value)


def test_an_unknown_option_is_refused(path):
    with pytest.raises(ValueError, match="anneal: expected .*keep, got 0.5 for 'mine'"):
        Recipe.read(path, 8, anneal=0.5)
    with pytest.raises(TypeError, match="repeats: expected an integer, got 'three'"):
        Recipe.read(path, 8, repeats="three")


def test_what_is_no_text_and_what_is_not_there(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.toml: no text in UTF-8"):
        Recipe.read(tmp_path / "binary.toml", 8)
    with pytest.raises(FileNotFoundError):
        Recipe.read(tmp_path / "none.toml", 8)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match=r"actions\[1\]: contradicts actions\[0\]"):
        Recipe(8, [Repeats(2), Repeats(3)])
    both = FILE.replace('action = "mixup"\nalpha = 0.4', 'action = "cutmix"\nalpha = 1.0')
    both = both.replace('unless = "keep"', "").replace('when = "keep"', "")
    file = RecipeFile.parse(both, "mine", "mine")
    with pytest.raises(ValueError, match="mixup and cutmix contradict each other"):
        file.make(8)


def test_one_way_of_mixing_may_follow_the_other():
    text = '[[actions]]\naction = "mixup"\nwindow = { phase = "during" }\n'
    text += '[[actions]]\naction = "cutmix"\nwindow = { phase = "after" }\n'
    recipe = RecipeFile.parse(text, "mine", "mine").make(8)
    kinds = [recipe.settings(Moment(epoch, 8, 3)).shape.mixing for epoch in range(8)]
    assert kinds == ["mixup"] * 3 + ["cutmix"] * 5


def test_a_volume_is_a_file_too():
    assert Recipe.named("volume", 8, repeats=1, budget=0.6).actions == (
        Repeats(1),
        Volume(0.6, 0.9),
    )
