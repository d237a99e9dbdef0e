import os
import pathlib
import signal
from importlib.util import find_spec

import pytest
import torch
from cuda_emulation.build import build
from cuda_emulation.harness import CUDA, EMULATED, Emulation

try:
    from hypothesis import settings
except ModuleNotFoundError:
    pass  # see examples.py
else:
    # Fixed examples: a test that passes once passes always.
    settings.register_profile("cpfast", derandomize=True, deadline=None, database=None)
    settings.load_profile("cpfast")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")
    parser.addoption("--calls", type=int, help="random calls of each op in tests/fuzz")


def pytest_configure():
    # A shell has what it starts in the background ignore Ctrl-C, which some tests press.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.option.slow:
            item.add_marker(pytest.mark.skip(reason="slow: --slow runs it"))
        for mark in item.iter_markers("needs"):
            if find_spec(*mark.args) is None:
                item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]} is not installed"))
        # With a GPU they run, and fail where the build has no CUDA ops.
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))
        too_much = item.get_closest_marker("not_emulated")
        if too_much and item.get_closest_marker("emulated"):
            item.add_marker(pytest.mark.skip(reason=f"not emulated: {too_much.args[0]}"))


@pytest.fixture(params=["cpu", CUDA, EMULATED])
def device(request):
    """Where tensors lie; "emulated" is the CPU, on which the ops run the CUDA kernels."""
    if request.param != "emulated":
        yield torch.device(request.param)
        return
    with request.getfixturevalue("emulated").instead_of_cpu():
        yield torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def away(tmp_path_factory):
    """From the checkout, whose cpfast/ would be imported instead of the installed: by subprocesses,
    and once `--model module:function` of a module's fixture has put this folder before others."""
    checkout = pathlib.Path.cwd()
    os.chdir(tmp_path_factory.mktemp("away"))
    yield
    os.chdir(checkout)


@pytest.fixture(autouse=True)
def elsewhere(away, tmp_path, monkeypatch):
    """A folder of each test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def each_thread_count():
    """Calls a function on one thread and on three, and returns both results."""
    threads = torch.get_num_threads()

    def run(function):
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(function())
        return results

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread():
    """Toy models train many times faster on one thread than on two of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """Runs the CUDA kernels on the CPU: ``emulated(op, *arguments)`` gives the op's outputs."""
    csrc = pathlib.Path(__file__).resolve().parent.parent / "csrc"
    return Emulation(build(csrc, tmp_path_factory.mktemp("cuda_emulation")))
