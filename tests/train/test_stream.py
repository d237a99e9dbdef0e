"""The stream of samples: batches of one size, nothing lost between epochs."""

import pytest
import torch
from support.examples import given, settings, st

from cpfast.train.stream import SampleStream

CPU = torch.device("cpu")


def epoch_of(first, count):
    index = torch.arange(first, first + count)
    return index, 2 * index, 3.0 * index


@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_batches_are_the_epochs_one_after_another(batch_size, counts, saved_at):
    stream = SampleStream(20, batch_size, CPU)
    taken, planned = [], 0
    for number, count in enumerate(counts):
        batches = stream.extend(*epoch_of(planned, count))
        planned += count
        begin = len(taken)
        for _ in range(batches):
            index, draw, weight = stream.next()
            assert len(index) == batch_size
            assert torch.equal(draw, 2 * index) and torch.equal(weight, 3.0 * index)
            taken += index.tolist()
        assert stream.weight_sum().item() == 3.0 * sum(taken[begin:])
        if number == saved_at:
            state, stream = stream.state_dict(), SampleStream(20, batch_size, CPU)
            stream.load_state_dict(state)
    assert taken == list(range(planned - planned % batch_size))
    assert stream.state_dict()["index"].tolist() == list(range(len(taken), planned))


def test_buffers_stay_where_they_are():
    stream = SampleStream(10, 4, CPU)
    buffers = [stream._index, stream._draw, stream._weight, stream._cursor]
    addresses = [buffer.data_ptr() for buffer in buffers]
    for first in range(0, 30, 10):
        for _ in range(stream.extend(*epoch_of(first, 10))):
            stream.next()
    stream.load_state_dict(stream.state_dict())
    now = [stream._index, stream._draw, stream._weight, stream._cursor]
    assert [buffer.data_ptr() for buffer in now] == addresses


def test_the_state_of_another_batch_size():
    stream = SampleStream(10, 8, CPU)
    stream.extend(*epoch_of(0, 7))
    with pytest.raises(ValueError, match="7 samples left over, a batch has at most 4"):
        SampleStream(10, 4, CPU).load_state_dict(stream.state_dict())
