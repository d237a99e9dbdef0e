import pytest
import torch
from support.host_reads import counted


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
    ],
)
def test_each_reading_is_counted(read):
    x = torch.arange(4.0)
    with counted() as reads:
        read(x)
    assert len(reads) >= 1


def test_work_on_the_device_is_no_reading():
    x = torch.arange(4.0)
    with counted() as reads:
        y = x[torch.tensor([1, 2])] * 2 + x.sum()
        torch.where(y > 0, y, 0.0).argsort()
    assert reads == []
