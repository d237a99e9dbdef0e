"""What a run sets for its whole process."""

import ctypes
import sys

import pytest
import torch

from cpfast.train import process
from cpfast.train.config import Config


@pytest.fixture
def restored():
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(before[0])
    torch.backends.cudnn.benchmark = before[1]
    torch.backends.cudnn.deterministic = False


def test_threads_and_determinism(restored):
    torch.backends.cudnn.benchmark = True
    process.prepare(Config.from_options({"threads": 2}))
    assert torch.get_num_threads() == 2
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_the_allocator_takes_the_settings_and_goes_on_working():
    process.keep_memory()
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        # as it was asked: 1 is success
        libc = ctypes.CDLL(None)
        assert libc.mallopt(process._MMAP_THRESHOLD, process._LARGEST_THRESHOLD) == 1
        assert libc.mallopt(process._MMAP_THRESHOLD, 2 * process._LARGEST_THRESHOLD) == 0
        assert libc.mallopt(process._TRIM_THRESHOLD, process._NEVER) == 1
    sizes = (1 << 10, 1 << 20, 40 << 20)
    assert [torch.ones(size, dtype=torch.uint8).sum().item() for size in sizes] == list(sizes)


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_without_glibc_nothing_happens(monkeypatch, platform):
    class Musl:
        pass

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: Musl())
    process.keep_memory()
