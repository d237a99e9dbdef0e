"""last.pt: whole, or refused in a line before anything of it is used."""

import io
import os
import pathlib
import random

import pytest
import torch

from cpfast.train import checkpoint
from cpfast.train.checkpoint import pack, unpack
from cpfast.train.errors import UserError

SOURCE = pathlib.Path("some/last.pt")
STATE = {"epoch": 0, "metrics": [], "w": torch.arange(3000.0), "names": ["a", "b"], "none": None}
PAGE = 4096


def refused(data, match):
    with pytest.raises(UserError, match=match) as raised:
        unpack(data, SOURCE)
    assert str(raised.value).startswith(f"{SOURCE}: ") and "\n" not in str(raised.value)


def test_a_whole_one_comes_back():
    state = unpack(pack(STATE), SOURCE)
    assert torch.equal(state.pop("w"), STATE["w"])
    assert state == {name: value for name, value in STATE.items() if name != "w"}


def test_torch_reads_it_too(tmp_path):
    (tmp_path / "last.pt").write_bytes(pack(STATE))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["names"] == ["a", "b"] and torch.equal(state["w"], STATE["w"])


def test_every_flipped_bit_is_noticed():
    whole, draw = pack(STATE), random.Random(0)
    ends = [*range(100), *range(len(whole) - 200, len(whole))]
    for place in {*ends, *draw.sample(range(len(whole)), 300)}:
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        refused(bytes(data), "truncated|damaged")


def test_every_zeroed_page_is_noticed():
    whole = pack(STATE)
    assert len(whole) > 3 * PAGE
    for begin in range(0, len(whole), PAGE):
        end = min(begin + PAGE, len(whole))
        refused(whole[:begin] + bytes(end - begin) + whole[end:], "truncated|damaged")


def test_what_is_cut_off_or_appended_is_noticed():
    whole = pack(STATE)
    for keep in (0, 1, 77, 78, 79, 100, PAGE, len(whole) - 79, len(whole) - 78, len(whole) - 1):
        refused(whole[:keep], "truncated|damaged")
    for more in (b"\0", b"\n", whole, bytes(PAGE)):
        refused(whole + more, "truncated|damaged")


def test_one_of_an_earlier_version_is_refused():
    file = io.BytesIO()
    torch.save({"format": "cpfast-run-1", "epoch": 0}, file)
    refused(file.getvalue(), "not a checkpoint of this version .no checksum at its end")


def sealed(value):
    """Any value, as if it were a checkpoint."""
    file = io.BytesIO()
    torch.save(value, file)
    body = file.getvalue()
    return body + checkpoint._MARK + checkpoint._digest(body)


@pytest.mark.parametrize(
    "foreign", [{"model": {}}, [1, 2], torch.zeros(2), {"format": checkpoint.FORMAT}]
)
def test_one_of_something_else_is_refused(foreign):
    refused(sealed(foreign), "not a checkpoint of a cpfast run")


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.path),)


def test_it_cannot_run_code(tmp_path):
    Evil.path = tmp_path / "made"
    refused(sealed({"format": checkpoint.FORMAT, "x": Evil()}), "not a checkpoint")
    assert not Evil.path.exists()
