"""Text for next-token prediction: what is in it, how it is split, what is refused."""

import functools
import importlib
import sys
import types

import pytest
import torch

from cpfast.train import data
from cpfast.train.data import text
from cpfast.train.errors import UserError

parsed = functools.cache(text._docstrings)


@pytest.fixture(autouse=True)
def each_module_is_parsed_once(monkeypatch):
    monkeypatch.setattr(text, "_docstrings", parsed)


@pytest.fixture(scope="module")
def documentation():
    return data.load("python-docs")


def read(vocabulary: str, tokens: torch.Tensor) -> str:
    """The text of consecutive sequences [N, T + 1]."""
    characters = [vocabulary[token] for token in tokens[:, :-1].flatten().tolist()]
    return "".join(characters)


def test_sequences_are_the_text_one_after_another(documentation):
    assert documentation.shape == (128,) and documentation.outputs == 96
    for tokens in (documentation.train_tokens, documentation.test_tokens):
        assert tokens.dtype == torch.uint8 and tokens.shape[1:] == (129,)
        assert tokens.max() < documentation.outputs
        # every character but the first is predicted once
        assert torch.equal(tokens[:-1, -1], tokens[1:, 0])
    whole = read(documentation.vocabulary, documentation.train_tokens)
    whole += read(documentation.vocabulary, documentation.test_tokens)
    sentence = 'The "for" statement is used to iterate over the elements of a sequence'
    assert sentence in " ".join(whole.split())
    assert documentation.train_size == len(documentation.train_tokens) > 5000
    assert documentation.train_size / documentation.test_size > 4


def test_no_long_passage_of_the_test_text_is_in_the_training_text(documentation):
    train = read(documentation.vocabulary, documentation.train_tokens)
    test = read(documentation.vocabulary, documentation.test_tokens)
    paragraphs = [part for part in test.split("\n\n")[1:-1] if len(part) > 80]
    assert len(paragraphs) > 100
    assert not [part for part in paragraphs if part in train]


def test_the_same_text_every_time_and_another_of_another_python(documentation, monkeypatch):
    assert data.load("python-docs").fingerprint() == documentation.fingerprint()
    topics = importlib.import_module("pydoc_data.topics").topics
    monkeypatch.setitem(topics, "for", topics["for"] + "\n\nA sentence of a later version.")
    assert data.load("python-docs").fingerprint() != documentation.fingerprint()


def test_modules_are_read_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "first.py").write_text(
        '"""First   of all."""\nraise SystemExit\n'
        'def f():\n    """A function: caf\u00e9."""\nclass C:\n    """A class."""\n'
    )
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "__init__.py").write_text('"""A package.\n\nA class.\n"""\n')
    monkeypatch.setattr(sys, "stdlib_module_names", frozenset({"first", "second", "absent"}))
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(
        sys.modules, "pydoc_data.topics", types.SimpleNamespace(topics={"x": "A topic."})
    )
    assert text._documents() == {
        "topic x": "A topic.",
        "module first": "First   of all.\n\nA function: caf\u00e9.\n\nA class.",
        "module second": "A package.\n\nA class.",
    }
    monkeypatch.setattr(text, "LENGTH", 4)
    monkeypatch.setattr(text, "_is_held_out", lambda name: name == "module second")
    small = data.load("python-docs")
    # "A class." is in the test text, so it is not in the training text
    assert read(small.vocabulary, small.test_tokens) == "A package.\n\nA cl"
    assert (
        read(small.vocabulary, small.train_tokens)
        == "First   of all.\n\nA function: caf?.\n\nA topic."[: 4 * small.train_size]
    )


def test_limit_keeps_some_of_the_training_sequences(documentation):
    some = data.load("python-docs", limit=300)
    assert some.train_size == 300
    assert torch.equal(some.test_tokens, documentation.test_tokens)
    known = {bytes(row) for row in documentation.train_tokens.numpy()}
    chosen = {bytes(row) for row in some.train_tokens.numpy()}
    assert chosen <= known and len(chosen) > 290
    assert some.fingerprint() == data.load("python-docs", limit=300).fingerprint()
    for limit in (0, documentation.train_size + 1):
        with pytest.raises(UserError, match=rf"--limit must be in 1 \.\. .* got {limit}"):
            data.load("python-docs", limit=limit)


def test_random_order_keeps_each_sequences_characters(documentation):
    some = data.load("python-docs", limit=200)
    mixed = some.with_random_labels(5)
    assert not torch.equal(mixed.train_tokens, some.train_tokens)
    assert torch.equal(mixed.train_tokens.sort(1).values, some.train_tokens.sort(1).values)
    assert torch.equal(mixed.test_tokens, some.test_tokens)
    assert torch.equal(mixed.train_tokens, some.with_random_labels(5).train_tokens)
    assert not torch.equal(mixed.train_tokens, some.with_random_labels(6).train_tokens)
    # rows are drawn for themselves: the same text is not mixed alike
    twice = torch.cat([some.train_tokens[:1]] * 2)
    rows = data.TextData(twice, twice, some.vocabulary, "twice").with_random_labels(0).train_tokens
    assert not torch.equal(rows[0], rows[1])


def test_what_describes_it(documentation):
    some = data.load("python-docs", limit=200)
    line = (
        f"python-docs: 200 training and {documentation.test_size:,} test sequences of "
        "128 characters, 96 different ones"
    )
    assert some.describe() == line
    assert some.with_random_labels(0).describe().startswith(f"{line}; characters of each")


@pytest.mark.not_emulated("no kernel runs")
def test_moving_keeps_everything(device):
    some = data.load("python-docs", limit=20)
    moved = some.to(device)
    assert moved.train_tokens.device.type == moved.test_tokens.device.type == device.type
    assert moved.fingerprint() == some.fingerprint()
    mixed = moved.with_random_labels(1).train_tokens
    assert torch.equal(mixed.cpu(), some.with_random_labels(1).train_tokens)


def test_a_python_without_its_documentation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="--data python-docs: this Python comes without"):
        data.load("python-docs")
