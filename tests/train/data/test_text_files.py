"""Text files and folders: characters to tokens, what is held out, what is refused."""

import pytest

from cpfast.train import data
from cpfast.train.data import characters
from cpfast.train.errors import UserError


def read(found, tokens):
    return "".join(found.vocabulary[token] for token in tokens[:, :-1].flatten().tolist())


def test_one_file_of_which_the_last_tenth_is_held_out(tmp_path):
    text = "".join(chr(97 + place % 7) + "\u00e9" for place in range(5000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = data.load(str(tmp_path / "a.txt"))
    assert data.kind_of(str(tmp_path / "a.txt")) == found.reads == "text"
    assert found.vocabulary == "abcdefg\u00e9" and found.shape == (128,)
    assert read(found, found.train_tokens) == text[: 128 * found.train_size]
    assert read(found, found.test_tokens) == text[9000 : 9000 + 128 * found.test_size]
    assert found.train_size == 8999 // 128 and found.test_size == 999 // 128
    assert "the last tenth of the text is held out" in found.note
    assert data.load(str(tmp_path / "a.txt"), limit=9).train_size == 9


def test_a_folder_of_which_a_tenth_of_the_documents_is_held_out(tmp_path):
    for number in range(20):
        place = tmp_path / "deep" / f"{number}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"<{number}>" * 200)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("Q" * 900)
    (tmp_path / "data.bin").write_bytes(b"\0Z")
    found = data.load(str(tmp_path))
    assert data.kind_of(str(tmp_path)) == "text"
    assert "2 of 20 documents are held out" in found.note
    assert set(found.vocabulary) <= set("<>\n0123456789")
    numbers = [
        {part for part in read(found, tokens).replace("\n", "").split("<") if part.endswith(">")}
        for tokens in (found.train_tokens, found.test_tokens)
    ]
    # cut at a document's end, a number may be another's beginning: the whole ones are apart
    assert len(numbers[1]) <= 3 and not numbers[0] & numbers[1]
    assert data.load(str(tmp_path)).fingerprint() == found.fingerprint()


def test_a_split_of_ones_own(tmp_path):
    (tmp_path / "train.txt").write_text("ab" * 500)
    (tmp_path / "test.txt").write_text("ba" * 200)
    found = data.load(str(tmp_path))
    assert read(found, found.test_tokens).startswith("baba") and found.test_size == 3


def test_images_are_never_read_as_text(tmp_path):
    (tmp_path / "README.md").write_text("x" * 5000)
    (tmp_path / "more.txt").write_text("x" * 5000)
    (tmp_path / "loose.png").write_bytes(b"none")
    with pytest.raises(UserError, match="1 image in no class folder"):
        data.load(str(tmp_path))


def test_most_frequent_characters_where_there_are_too_many():
    common = [chr(0x4E00 + place) for place in range(255)]
    rare = [chr(0x6E00 + place) for place in range(50)]
    text = "".join(common * 10) + "".join(rare)
    vocabulary = characters.vocabulary_of([text])
    assert len(vocabulary) == 256 and set(vocabulary) == {*common, "\ufffd"}
    tokens, unknown = characters.tokens_of(text, vocabulary)
    assert unknown == 50
    assert "".join(vocabulary[token] for token in tokens) == "".join(common * 10) + "\ufffd" * 50
    made = characters.text_data("it", text, text, name="toy")
    assert made.note == "100 characters of the rarest kinds are read as \ufffd"
    assert characters.vocabulary_of(["\ufffdba"]) == "ab\ufffd"
    exact = "".join(chr(place) for place in range(256))
    assert characters.vocabulary_of([exact]) == exact


def test_what_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(UserError, match=r"a\.txt: 5 characters of training text; .* takes 129"):
        data.load(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("x" * 1000)
    with pytest.raises(UserError, match="100 characters of test text"):
        data.load(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match=r"--limit must be in 1 \.\. 35 .*got 36"):
        (tmp_path / "a.txt").write_text("x" * 5000)
        data.load(str(tmp_path / "a.txt"), limit=36)
