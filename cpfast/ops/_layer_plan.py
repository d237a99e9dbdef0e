"""The table of all layers made once, so that a call per step does the same little at any L."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from cpfast import reference
from cpfast.ops._common import OPS, REFERENCE, check_tensors
from cpfast.ops._layer_statistics import _layer_arguments, _listed, _ratio_argument
from cpfast.results import LayerStatistics

__all__ = ["LayerPlan"]

# What decides which elements a linear walk pairs, each asked of all tensors by one map(): 16 us
# for 58 of them, where Tensor.is_set_to would miss a change of dtype.
_PLACE = (Tensor.data_ptr, Tensor.stride, Tensor.numel, attrgetter("dtype"))


def _places(tensors: Sequence[Tensor]) -> list[list[Any]]:
    return [list(map(question, tensors)) for question in _PLACE]


def _is_lazy(tensor: Tensor) -> bool:
    """Whether its memory does not hold its values: an op is given a copy, and frees it."""
    return tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor()


def _is_dense(tensor: Tensor) -> bool:
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _is_walked_alike(a: Tensor, b: Tensor) -> bool:
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(mine == other for size, mine, other in strides if size > 1)


class LayerPlan:
    """:func:`layer_rotation` and :func:`layer_statistics` of tensors that stay where they are.

    Equal to the bit with those, whose host work grows with the number of layers; that of a plan
    hardly does, and on CUDA a call is one kernel or two (where all params are dense), which a CUDA
    graph can capture. It remembers the ratio of norms of each layer, and so goes over a layer once
    where the functions go over it twice.

    The plan is of addresses: its storages stay alive as long as it does, and where a weight has
    moved since (``.data`` assigned, another dtype, other strides) :meth:`is_current` is False and
    the plan measures what lay there before. :class:`cpfast.LayerRotation` looks after that. A
    storage that was resized has given its memory away: every call notices, and refuses. Replays of
    a CUDA graph cannot.

    On CUDA a plan's calls share its scratch: make them on one stream, or on streams that wait for
    one another. A graph that captured a call needs the plan to be alive.

    Args:
        params: L tensors of float32, float64, float16 or bfloat16, any shapes. Those that are not
            dense (a slice, an expanded tensor, a lazily negated one) are copied at every call.
        refs: L tensors of the same shapes; dtypes may differ. Those of other strides than their
            params are copied once, here.
        ref_sq_norms: optional [L] float64 (float32 is converted), the sum of squares of each
            reference, else computed at every call.

    Raises:
        RuntimeError: for empty or mismatched lists, shapes, dtypes or devices.

    Source: layer rotation, Carbonnelle & De Vleeschouwer (arXiv 1806.01603).
    """

    @torch.no_grad()
    def __init__(
        self,
        params: Iterable[Tensor],
        refs: Iterable[Tensor],
        ref_sq_norms: Tensor | None = None,
    ) -> None:
        self._params, self._refs, self._ref_sq_norms = _layer_arguments(
            "LayerPlan", params, refs, ref_sq_norms
        )
        if len(self._refs) != len(self._params):
            raise RuntimeError(
                f"cpfast::LayerPlan: refs: expected {len(self._params)} tensors, as many as "
                f"params, got {len(self._refs)}"
            )
        self._param_places, self._ref_places = _places(self._params), _places(self._refs)
        # Aliases hold the storages, which the tensors let go of where `.data` is assigned.
        self._walked: list[Tensor] = []
        self._walked_refs: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        watched = {f"params[{i}]": param.detach() for i, param in enumerate(self._params)}
        for param, ref in zip(watched.values(), self._refs, strict=True):
            walked, walked_ref = param, ref.detach()
            if _is_lazy(walked) or not _is_dense(walked):
                walked = torch.empty_like(walked, memory_format=torch.contiguous_format)
                self._copied.append((walked, param))
            if _is_lazy(walked_ref):
                walked_ref = walked_ref.clone().resolve_neg()
            # Where the shapes differ, the op says so.
            if walked.shape == ref.shape and not _is_walked_alike(walked, ref):
                like = torch.empty_like(walked, device=ref.device, dtype=ref.dtype)
                walked_ref = like.copy_(walked_ref)
            self._walked.append(walked)
            self._walked_refs.append(walked_ref)
        # The op of the CPU asks after what it walks itself: here that would take 5 % of its time.
        if not REFERENCE and self._params[0].device.type == "cpu":
            watched = {
                k: t for k, t in watched.items() if id(t) in {id(p) for _, p in self._copied}
            }
        else:
            watched |= {f"refs[{i}]": ref for i, ref in enumerate(self._walked_refs)}
        self._watched, self._held = list(watched), list(watched.values())
        self._addresses = list(map(Tensor.data_ptr, self._held))
        self._plan: tuple[Any, ...] = ()
        if not REFERENCE:
            self._plan = OPS.plan_layers(self._walked, self._walked_refs)

    def __reduce__(self) -> tuple[Any, ...]:
        # Addresses do not travel: a copy makes its own plan, of the tensors that it was given.
        return LayerPlan, (self._params, self._refs, self._ref_sq_norms)

    def __len__(self) -> int:
        return len(self._params)

    def is_current(self, params: Sequence[Tensor] | None = None) -> bool:
        """Whether all tensors still lie where they did, with the same dtypes and strides.

        Args:
            params: what to compare instead of the tensors that the plan was made of, with the
                params alone; about 16 us for 58 of them.
        """
        if params is not None:
            params = _listed("LayerPlan.is_current", "params", params)
            return _places(params) == self._param_places
        return (
            _places(self._params) == self._param_places and _places(self._refs) == self._ref_places
        )

    def _prepare(self) -> None:
        if self._held and list(map(Tensor.data_ptr, self._held)) != self._addresses:
            self._refuse_what_moved()
        for to, param in self._copied:
            to.copy_(param)

    def _refuse_what_moved(self) -> None:
        places = zip(self._watched, self._held, self._addresses, strict=True)
        name = next(name for name, tensor, at in places if tensor.data_ptr() != at)
        raise RuntimeError(
            f"cpfast::LayerPlan: {name}: its storage was resized, and is no longer where it was; "
            "make a new plan"
        )

    def _reference_arguments(self) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        return self._walked, self._walked_refs, self._ref_sq_norms

    def layer_rotation(self) -> Tensor:
        """As :func:`layer_rotation` of the plan's tensors: a new [L] float32."""
        self._prepare()
        if REFERENCE:
            return reference.layer_rotation(*self._reference_arguments())
        return OPS.planned_layer_rotation.default(*self._plan, self._ref_sq_norms)

    def layer_statistics(self) -> LayerStatistics:
        """As :func:`layer_statistics` of the plan's tensors: new tensors [L] float32."""
        self._prepare()
        if REFERENCE:
            return reference.layer_statistics(*self._reference_arguments())
        rows = OPS.planned_layer_statistics.default(*self._plan, self._ref_sq_norms)
        return LayerStatistics(*rows.unbind())

    def layer_sums(self, ratio: Tensor | None = None) -> Tensor:
        """As :func:`layer_sums` of the plan's tensors, without its ``ref_sq_norms``: a new [6, L]
        float64.
        """
        ratio = _ratio_argument("LayerPlan.layer_sums", ratio)
        self._prepare()
        if REFERENCE:
            return reference.layer_sums(self._walked, self._walked_refs, ratio)
        return OPS.planned_layer_sums.default(*self._plan, ratio)

    def record(self, history: Tensor, cursor: Tensor) -> None:
        """Writes the rotation into row ``cursor % R`` of a ring, and counts the cursor up.

        Both on the device, without synchronising: replays of a CUDA graph fill successive rows.

        Args:
            history: [R, L] float32, contiguous; written.
            cursor: [] int64, not negative; counted up. On CUDA a negative one is not refused: the
                row is one of the ring all the same.

        Raises:
            RuntimeError: for wrong shapes, dtypes or devices, or a negative cursor on the CPU: then
                nothing is written.
            TypeError: for an argument that is no tensor.
        """
        check_tensors("LayerPlan.record", history=history, cursor=cursor)
        self._prepare()
        if REFERENCE:
            reference.record_layer_rotation(*self._reference_arguments(), history, cursor)
        else:
            OPS.record_layer_rotation.default(*self._plan, self._ref_sq_norms, history, cursor)
