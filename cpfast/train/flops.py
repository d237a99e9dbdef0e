"""How many FLOPs a run's samples cost: what it computes, whatever else the machine does meanwhile.

Counted are matrix products and convolutions, those of attention among them, with 2 FLOPs a
multiply-add, by the formulas of `torch.utils.flop_counter`; causal attention counts whole, as it
does there. The last layer's product counts in all passes, also where the loss takes it over.

Not counted are element-wise work (activations, normalisation, softmax, the loss), pooling and
embeddings, augmentation and mixing, averaging between processes, the optimizer, what a custom op
computes, and evaluation.

Nothing is computed for it: the network is run on the meta device, where tensors have shapes alone.
The formulas are applied here rather than by `FlopCounterMode`, which tells modules apart besides,
and normalisations are answered here: so a count takes 24 ms for `cnn`, 72 for `resnet18` and 532
for `resnet110`, in place of 75, 329 and 1,776 (one core of an AMD EPYC that others used too).
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cpfast.recipes import StepShape

__all__ = ["Cost", "FlopCounter"]


class Cost(NamedTuple):
    """FLOPs of one sample."""

    step: float
    """Forward and backward."""
    forward: float
    """Forward alone."""


class FlopCounter:
    """What a sample costs in the steps of a training.

    Args:
        model: on any device; it is copied and left as it is.
        inputs: samples as a step of a shape reads them, [B, ...] on the meta device, in the dtype
            of the weights, since autocast is off.
    """

    def __init__(self, model: nn.Module, inputs: Callable[[StepShape], Tensor]) -> None:
        self._model = model
        self._inputs = inputs
        self._costs: dict[tuple[float, float, int], Cost | None] = {}

    def of(self, shape: StepShape) -> Cost | None:
        """Measured once for each resolution, length and number of frozen layers: batch, mixing and
        augmentation change nothing in a sample's cost.

        Args:
            shape: as whose ``frozen`` the layers are frozen now.

        Returns:
            None where it is not known, as the network does not run on the meta device.
        """
        key = shape.resolution, shape.length, shape.frozen
        if key not in self._costs:
            self._costs[key] = _measured(self._model, self._inputs(shape))
        return self._costs[key]


def _measured(model: nn.Module, inputs: Tensor) -> Cost | None:
    counted = _Counted()
    try:
        copied = _on_meta(model).train()
        with _random_state_kept(), counted, torch.enable_grad():
            outputs = copied(inputs)
            forward = counted.flops
            outputs.sum().backward()
    # whatever the network's own code raises
    except Exception:
        return None
    return Cost(counted.flops / len(inputs), forward / len(inputs))


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy, of which no more than shapes and dtypes are in memory."""
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        known[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in model.buffers():
        known[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, known)


def _normalised(inputs: Tensor, scale: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A normalisation's output, and two tensors of the shape of its scale; in its backward pass the
    gradients."""
    return torch.empty_like(inputs), inputs.new_empty(scale), inputs.new_empty(scale)


_ATEN = torch.ops.aten
# On the meta device torch takes them apart in Python, into dozens of operations.
_NORMALISATIONS: dict[Any, Callable[..., Any]] = {
    _ATEN.native_batch_norm.default: lambda x, *_: _normalised(x, x.shape[1]),
    _ATEN.native_batch_norm_backward.default: lambda _, x, *__: _normalised(x, x.shape[1]),
    _ATEN.native_layer_norm.default: lambda x, shape, *_: _normalised(x, shape),
    _ATEN.native_layer_norm_backward.default: lambda _, x, shape, *__: _normalised(x, shape),
}


class _Counted(TorchDispatchMode):
    """Adds up the FLOPs of what is called.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = _NORMALISATIONS.get(func, func)(*args, **(kwargs or {}))
        called = func.overloadpacket
        if called is _ATEN.convolution_backward:
            self.flops += _of_convolution_backward(*args)
        elif called in flop_registry:
            self.flops += flop_registry[called](*args, **(kwargs or {}), out_val=out)
        return out


def _of_convolution_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, *settings: Any
) -> int:
    """The forward pass's once for each of the two gradients that are asked for.

    torch's formula is the same, but that it takes no notice of groups in the gradient of the
    weight: it has depthwise convolutions cost as many times too much as there are channels (2.13).
    """
    is_transposed, asked = settings[4], settings[7]
    places = (inputs if is_transposed else gradient).shape[2:]
    forward = 2 * len(inputs) * math.prod(places) * weight.numel()
    return forward * (asked[0] + asked[1])


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Around a network that may draw: the same numbers each time, and nobody else's."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the generators of all GPUs, which are not restored.
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
