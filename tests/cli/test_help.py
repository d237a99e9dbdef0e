"""The help: every option in a group with a line of its own, and nothing wider than a terminal."""

import argparse

import pytest

from cpfast import cli


def parsers():
    """By command."""
    pending, found = [("cpfast", cli._parser())], {}
    while pending:
        name, parser = pending.pop()
        found[name] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                pending += [(f"{name} {sub}", made) for sub, made in action.choices.items()]
    return found


@pytest.mark.parametrize("name", parsers())
def test_each_option_is_explained(name):
    for action in parsers()[name]._actions:
        if isinstance(action, argparse._SubParsersAction):  # each with its own
            assert len(action._choices_actions) == len(action.choices)
            assert all(choice.help for choice in action._choices_actions)
            continue
        assert action.help, f"{name} {action.option_strings}"
        assert action.nargs == 0 or action.metavar or action.choices, action.option_strings


def test_the_options_of_train_are_in_groups_that_read_as_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = parsers()["cpfast train"]
    titles = [group.title for group in parser._action_groups if group._group_actions]
    assert titles == [
        "options", "data", "augmentation of images", "model", "method: what an epoch trains on",
        "critical period", "training", "output", "machine", "energy and cost",
    ]  # fmt: skip
    (general,) = [group for group in parser._action_groups if group.title == "options"]
    assert [action.dest for action in general._group_actions] == ["help"]
    of_images = next(g for g in parser._action_groups if g.title == "augmentation of images")
    assert {"flip", "augment", "mixup", "cutmix"} == {a.dest for a in of_images._group_actions}
    assert max(map(len, parser.format_help().splitlines())) <= 100


def test_the_arms_of_a_comparison_are_told(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = parsers()["cpfast compare"].format_help()
    for arm in ("full", "detector", "k1", "k1_matched", "shortened", "fixed", "rs2", "k1+POLICY"):
        assert f"\n  {arm} " in text
    assert max(map(len, text.splitlines())) <= 100
