"""What a run sets for its whole process."""

import sys

import pytest
import torch

from cpfast.train import process
from cpfast.train.config import Config


@pytest.fixture
def restored():
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    yield
    torch.set_num_threads(before[0])
    cudnn.benchmark, cudnn.deterministic = before[1:]


def test_threads(restored):
    process.prepare(Config.from_options({"threads": 2}))
    assert torch.get_num_threads() == 2


def test_no_algorithm_is_chosen_by_its_time(restored):
    torch.backends.cudnn.benchmark = True
    process.repeat_to_the_bit()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("largest", [2**30, 2**25])
def test_the_largest_threshold_that_is_taken(monkeypatch, largest):
    calls = []

    class Glibc:
        @staticmethod
        def mallopt(option, value):
            calls.append((option, value))
            return int(option != process._MMAP_THRESHOLD or value <= largest)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: Glibc)
    process.keep_memory()
    tried = [value for option, value in calls if option == process._MMAP_THRESHOLD]
    assert tried == [size for size in (2**30, 2**25) if size >= largest]
    assert calls[-1] == (process._TRIM_THRESHOLD, process._NEVER)


def test_the_allocator_goes_on_working():
    process.keep_memory()
    sizes = (1 << 10, 1 << 20, 40 << 20)
    assert [torch.ones(size, dtype=torch.uint8).sum().item() for size in sizes] == list(sizes)


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_without_glibc_nothing_happens(monkeypatch, platform):
    class Musl:
        pass

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: Musl())
    process.keep_memory()
