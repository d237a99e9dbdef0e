"""What the tests of emulated kernels share: running an op, and guarded inputs."""

import contextlib
import ctypes
import itertools
import math
import mmap
import platform
import shutil
import warnings

import pytest
import torch
from torch.utils._pytree import tree_map_only

import cpfast

emulated_only = [
    pytest.mark.skipif(cpfast.backend() == "reference", reason="there are no CPU kernels"),
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"),
        reason="the emulation runs on Linux on x86-64 alone",
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation needs g++"),
]
# Where CUDA kernels run: params of the fixture `device`.
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
EMULATED = pytest.param("emulated", marks=[pytest.mark.emulated, *emulated_only])

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF, NAN = math.inf, math.nan
cpu = torch.ops.cpfast


def is_same(a, b):
    """Equal to the bit, NaN and the sign of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))


class Emulation:
    def __init__(self, library):
        torch.ops.load_library(str(library))
        self.library = ctypes.CDLL(str(library))
        self.library.emulation_allocated.restype = ctypes.c_int64
        self.allocated = 0
        """Bytes of the outputs and the scratch of the last run."""

    def call(self, op, *arguments, seed=0):
        """What an op returns. The seed decides which thread goes on when."""
        self.library.emulation_seed(seed)
        try:
            result = getattr(torch.ops.cpfast_emulated, op)(*arguments)
            return tree_map_only(torch.Tensor, torch.clone, result)
        finally:
            self.allocated = self.library.emulation_allocated()
            damaged = self.library.emulation_free()
            assert damaged == 0, f"{op} wrote past an end of {damaged} tensors"

    def run(self, op, *arguments, seed=0):
        """The outputs of an op, in a list."""
        result = self.call(op, *arguments, seed=seed)
        return [result] if isinstance(result, torch.Tensor) else list(result or [])

    @contextlib.contextmanager
    def refusing_beyond(self, blocks):
        """Cooperative grids of more blocks are refused, as where a tool has grown the kernel."""
        self.library.emulation_refuse_beyond(ctypes.c_int64(blocks))
        try:
            yield
        finally:
            self.library.emulation_refuse_beyond(ctypes.c_int64(1 << 30))

    def __call__(self, op, *arguments):
        outputs = self.run(op, *arguments)
        again = self.run(op, *arguments, seed=1)
        assert all(map(is_same, outputs, again)), f"{op} depends on the order of its threads"
        return outputs

    @contextlib.contextmanager
    def instead_of_cpu(self):
        """Has the ops of torch.ops.cpfast run the CUDA kernels on tensors of the CPU."""
        seeds = itertools.count()
        library = torch.library.Library("cpfast", "IMPL")

        def emulate(op):
            return lambda *arguments: self.call(op, *arguments, seed=next(seeds))

        try:
            with warnings.catch_warnings():  # of the kernels that are replaced
                warnings.simplefilter("ignore")
                for name in torch._C._dispatch_get_all_op_names():
                    namespace, op = name.split("::")
                    if namespace == "cpfast_emulated":
                        library.impl(op, emulate(op), "CPU")
            yield
        finally:
            library._destroy()


def guarded(tensor, offset=None):
    """A copy between two pages that nobody may touch: up to the second one, or, given an offset,
    so many elements after the first one."""
    if tensor.numel() == 0:
        return tensor.clone()
    item, page = tensor.element_size(), mmap.PAGESIZE
    size = tensor.numel() * item
    pages = -(-(size + (offset or 0) * item) // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    end = (pages + 1) * page
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for address in (first, first + end):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
    begin = end - size if offset is None else page + offset * item
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
    return copy.view(tensor.shape).copy_(tensor)


def generator(*seed):
    return torch.Generator().manual_seed(hash(seed))


def assert_close(actual, expected, rtol, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
