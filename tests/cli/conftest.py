import pytest
import torch


@pytest.fixture(autouse=True)
def settings():
    """`main` sets these for its process."""
    threads, flags = torch.get_num_threads(), torch.backends.cudnn.deterministic
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = flags
