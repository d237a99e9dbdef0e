"""Random arguments, in memory that nobody may read past, and how results are compared."""

import math
import os

import numpy as np
import torch
from cuda_emulation.harness import guarded

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32]
CLASSES = [*INTEGERS, torch.int16, torch.int8, torch.uint8]
NUMBERS = [0, 1, -1, 7, 2**32 - 1, 2**63 - 1, -(2**63)]

# On CUDA an index out of range stops the device, and a target makes NaN.
LOOKS_AT_VALUES = "EMULATED" not in os.environ

# float32 sums have up to 128 additions before they go on in float64.
SUMS = 1e-5
ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-8}
# Below, float32 and float16 have fewer digits, or none.
SMALLEST = {torch.float64: 1e-300, torch.float16: 2**-23}


class Wrong(Exception):
    """A result that is not the expected one."""


class Draws:
    """All random choices of one call, and the tensors that it may not change."""

    def __init__(self, op: str, seed: int):
        self.numpy = np.random.default_rng([seed, *op.encode()])
        self._kept: list[tuple[torch.Tensor, ...]] = []

    def chance(self, p: float) -> bool:
        return bool(self.numpy.random() < p)

    def below(self, n: int) -> int:
        return int(self.numpy.integers(n))

    def one_of(self, choices):
        return choices[self.below(len(choices))]

    def size(self, most: int) -> int:
        """Mostly small, where the edges of vectors and tiles are; 0 among them."""
        few = self.one_of([0, 1, 2, 3, 5, 8, 17, 31, 64, 65, 130])
        return min(most, few) if self.chance(0.8) else self.below(most + 1)

    def number(self) -> int:
        """An integer of 64 bits."""
        if self.chance(0.3):
            return self.one_of(NUMBERS)
        return int(self.numpy.integers(-(2**63), 2**63))

    def normal(self, shape, scale=1.0) -> np.ndarray:
        return self.numpy.standard_normal(shape) * scale

    def tensor(self, values, dtype=None, *, strided=False, rows=False) -> torch.Tensor:
        """A guarded tensor, which the call may not change, as :meth:`check_kept` sees.

        With ``strided`` dimensions come in any order in memory, with gaps between elements; with
        ``rows`` the last one alone has neither. Gaps hold NaN, or the largest integer.
        """
        tensor, memory = self._placed(values, dtype, strided, rows)
        self._keep(memory, torch.ones(memory.shape, dtype=torch.bool))
        return tensor

    def written(self, values, dtype=None, *, rows=False) -> torch.Tensor:
        """The same, of which the call may change all but the gaps."""
        tensor, memory = self._placed(values, dtype, False, rows)
        gaps = torch.ones(memory.shape, dtype=torch.bool)
        gaps.as_strided(tensor.shape, tensor.stride()).fill_(False)
        self._keep(memory, gaps)
        return tensor

    def _placed(self, values, dtype, strided, rows):
        values = torch.as_tensor(values)
        values = (values if dtype is None else values.to(dtype)).contiguous()
        strides, extent = list(values.stride()), values.numel()
        if (strided or rows) and values.dim() > 0 and self.chance(0.6):
            strides, extent = self._strides(list(values.shape), rows)
        gap = math.nan if values.is_floating_point() else torch.iinfo(values.dtype).max
        offset = None if self.chance(0.5) else self.below(9)
        memory = guarded(torch.full((extent,), gap, dtype=values.dtype), offset)
        return memory.as_strided(values.shape, strides).copy_(values), memory

    def _keep(self, memory, where):
        self._kept.append((memory, memory.clone(), where))

    def _strides(self, shape, rows):
        dimensions = list(range(len(shape)))
        if rows:
            order = [dimensions.pop(), *dimensions[::-1]]
        else:
            order = [int(i) for i in self.numpy.permutation(dimensions)]
        strides, step = [0] * len(shape), 1 if rows else self.one_of([1, 1, 2, 3])
        for i in order:
            strides[i] = step
            step = step * max(1, shape[i]) + self.one_of([0, 0, 1, 3])
        if 0 in shape:
            return strides, 0
        return strides, 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))

    def check_kept(self) -> None:
        for memory, before, where in self._kept:
            size = memory.element_size()
            now, then = (m.view(torch.uint8).view(-1, size)[where] for m in (memory, before))
            if not torch.equal(now, then):
                raise Wrong(f"{int((now != then).sum())} bytes changed that only are to be read")


def exact(tensor: torch.Tensor) -> np.ndarray:
    """A copy as float64, which holds the values of all floating dtypes."""
    return tensor.detach().double().numpy().copy()


def check(name: str, actual: torch.Tensor, expected, rtol=0.0, atol=0.0) -> None:
    """Whether all values are equal, or as near as that; NaN and Inf only where expected.

    What is expected beyond the range of the result's dtype is Inf.
    """
    expected = np.asarray(expected)
    if tuple(actual.shape) != expected.shape:
        raise Wrong(f"{name}: expected shape {list(expected.shape)}, got {list(actual.shape)}")
    if not actual.is_floating_point():
        got = actual.numpy()
        wrong = got != expected
    else:
        got = exact(actual)
        with np.errstate(all="ignore"):
            tolerance = rtol * np.abs(expected) + atol
            limit = torch.finfo(actual.dtype).max
            expected = np.where(np.abs(expected) > limit, np.sign(expected) * np.inf, expected)
            near = np.abs(got - expected) <= tolerance
            wrong = ~(near | (got == expected) | (np.isnan(got) & np.isnan(expected)))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Wrong(
            f"{name}{list(at)}: expected {expected[at]!r}, got {got[at]!r} "
            f"({int(wrong.sum())} of {wrong.size} are wrong)"
        )


def refused(call, message: str) -> None:
    """Whether a call is refused in one line that begins with the message."""
    try:
        call()
    except RuntimeError as error:
        if not str(error).startswith(message) or "\n" in str(error):
            raise Wrong(f"expected an error that begins with {message!r}, got {error}") from None
    else:
        raise Wrong(f"expected an error that begins with {message!r}")
